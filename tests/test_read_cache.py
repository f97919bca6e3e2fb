"""The cache of object stores: the same pixels, a bound that holds, and several processes at once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from casebook import Case, Layer, open_case, write_case
from rayters.patches.cache import Cache

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    image = RNG.integers(0, 256, (3, 1500, 1500), dtype=np.uint8)
    layers = {Layer(id="a"): (image[0] > 99).astype(np.uint8)}
    url = str(tmp_path_factory.mktemp("store") / "case.ome.zarr")
    return write_case(url, image, spacing_um=(1.0, 1.0), classes=("n", "t"), layers=layers)


def stored(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name not in ("lock", "zarr.json"))


def test_the_cache_gives_the_pixels_of_the_store_and_then_needs_it_no_more(case: Case, tmp_path: Path) -> None:
    cached = Cache(folder=str(tmp_path), max_bytes=2**30).case(case)
    box = ((300, 200), (700, 900))
    for _ in range(2):
        assert np.array_equal(cached.read_image(0, *box), case.read_image(0, *box))
        assert np.array_equal(cached.read_labels(["a", "nobody"], 0, *box), case.read_labels(["a", "nobody"], 0, *box))
    lost = [
        url for url in cached.objects(case.stored.levels[0], case.stored.axes, *box) if not cached.path_of(url).exists()
    ]
    assert lost == []


def test_the_bound_holds_and_what_was_evicted_is_fetched_again(case: Case, tmp_path: Path) -> None:
    bound = 3 * 3 * 512 * 512  # about three chunks of noise
    cached = Cache(folder=str(tmp_path), max_bytes=bound).case(case)
    for origin in [(0, 0), (0, 512), (512, 0), (512, 512), (0, 0), (988, 988)]:
        assert np.array_equal(cached.read_image(0, origin, (512, 512)), case.read_image(0, origin, (512, 512)))
        assert stored(tmp_path) <= bound


READER = """
import sys, numpy as np
from casebook import open_case
from rayters.patches.cache import Cache
url, folder, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
case = open_case(url)
cached = Cache(folder=folder, max_bytes=4 * 3 * 512 * 512).case(case)
rng = np.random.default_rng(seed)
for _ in range(40):
    origin = tuple(int(v) for v in rng.integers(0, 1500 - 256, 2))
    assert np.array_equal(cached.read_image(0, origin, (256, 256)), case.read_image(0, origin, (256, 256)))
    assert np.array_equal(cached.read_labels(["a"], 0, origin, (256, 256)), case.read_labels(["a"], 0, origin, (256, 256)))
"""


def test_processes_that_evict_each_others_objects_never_read_a_wrong_pixel(case: Case, tmp_path: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", READER, case.url, str(tmp_path), str(seed)], env=dict(os.environ))
        for seed in range(3)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert open_case(case.url) == case
    assert stored(tmp_path) <= 4 * 3 * 512 * 512
    assert not list(tmp_path.rglob("*.part"))
