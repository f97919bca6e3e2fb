"""Large arrays are written block by block, and a kill at any moment costs only the blocks in flight."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from casebook import CaseFormatError, CaseNotFoundError, ConflictError, Layer, open_case, write_case
from casebook.layers import add_layer, remove_layer
from casebook.one_pass import Storage
from casebook.pyramid import mean_down, mode_down

SMALL = Storage(image_chunk_px=(64, 64), label_chunk_px=(64, 64), shards="always")
ROOT = Path(__file__).parents[1]
CLASSES = ("background", "tumour")
ANNA, BEN = Layer(id="anna"), Layer(id="ben")


@dataclass(frozen=True, kw_only=True)
class Waves:
    """A picture computed where it is read; `pause_s` per block gives a killer time."""

    shape: tuple[int, ...] = (3, 1111, 900)
    dtype: str = "uint8"
    identity: str = "waves"
    pause_s: float = 0.0

    def read(self, origin, size):
        time.sleep(self.pause_s)
        y, x = np.ogrid[origin[0] : origin[0] + size[0], origin[1] : origin[1] + size[1]]
        return np.stack([(y * 7 + x * (3 + c)) % 251 for c in range(3)]).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Stripes:
    shape: tuple[int, ...] = (1111, 900)
    identity: str = "stripes"

    def read(self, origin, size):
        return ((np.arange(origin[0], origin[0] + size[0]) // 37 % 2)[:, None] * np.ones(size, int)).astype(np.uint8)


def write(url, pause_s=0.0, scheduler=None, progress=None):
    layers = {ANNA: Stripes(), BEN: Stripes(identity="stripes of ben")}
    return write_case(url, Waves(pause_s=pause_s), spacing_um=(1, 1), classes=CLASSES, layers=layers, storage=SMALL,
                      scheduler=scheduler, progress=progress)  # fmt: skip


def tree_hash(folder: Path) -> dict[str, str]:
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", None])
def test_every_level_is_the_mean_or_the_mode_of_the_one_before(tmp_path, scheduler):
    case = write(tmp_path / "a.ome.zarr", scheduler=scheduler)
    image = Waves().read((0, 0), (1111, 900))
    labels = Stripes().read((0, 0), (1111, 900))
    for level, shape in enumerate(case.shapes):
        assert (case.read_image(level, (0, 0), shape) == image).all()
        assert (case.read_labels(("anna",), level, (0, 0), shape)[0] == labels).all()
        image, labels = mean_down(image, (2, 2)), mode_down(labels, (2, 2))


def test_the_source_is_read_once_and_progress_reaches_the_end(tmp_path):
    seen = []
    write(tmp_path / "a.ome.zarr", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("after_s", [0.3, 0.9])
def test_killed_and_started_again_it_is_the_same_to_the_bit(tmp_path, after_s):
    whole = tmp_path / "whole.ome.zarr"
    write(whole)
    broken = tmp_path / "broken.ome.zarr"
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import {Path(__file__).stem} as here"
    program = f"{here}; print('go', flush=True); here.write({str(broken)!r}, pause_s=0.15)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "storage")}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    while not (broken / ".partial/0").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(after_s)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(CaseNotFoundError):
        open_case(broken)
    before = len(list((broken / ".partial/0").iterdir()))
    steps = []
    write(broken, progress=lambda done, total: steps.append(done))
    assert before > 0
    assert strip_name(tree_hash(broken)) == strip_name(tree_hash(whole))


def strip_name(hashes):
    """The root's document holds the case's name, which differs by purpose."""
    return {path: value for path, value in hashes.items() if path != "zarr.json"}


def test_another_source_does_not_resume_what_was_begun(tmp_path):
    url = tmp_path / "a.ome.zarr"

    @dataclass(frozen=True, kw_only=True)
    class Failing(Waves):
        def read(self, origin, size):
            if origin[0] >= 512:
                raise CaseFormatError("the disk was pulled out")
            return Waves.read(self, origin, size) * 0

    with pytest.raises(CaseFormatError, match="pulled out"):
        write_case(
            url,
            Failing(identity="other"),
            spacing_um=(1, 1),
            classes=CLASSES,
            layers={},
            storage=SMALL,
            scheduler="synchronous",
        )
    assert write(url).read_image(0, (0, 0), (64, 64)).any()


def test_an_annotator_is_added_replaced_and_removed_later(tmp_path):
    case = write_case(
        tmp_path / "a.ome.zarr", Waves(), spacing_um=(1, 1), classes=CLASSES, layers={ANNA: Stripes()}, storage=SMALL
    )
    case = add_layer(case.url, BEN, Stripes(), storage=SMALL)
    assert case.annotators == ("anna", "ben")
    with pytest.raises(ConflictError, match="'ben'"):
        add_layer(case.url, BEN, Stripes())
    case = add_layer(case.url, BEN, np.zeros((1111, 900), np.uint8), existing="replace")
    assert not case.read_labels(("ben",), 2, (0, 0), case.shapes[2]).any()
    case = remove_layer(case.url, "anna")
    assert case.annotators == ("ben",)
    assert not (tmp_path / "a.ome.zarr/labels/anna").exists()
    with pytest.raises(CaseFormatError, match="no layer 'anna'"):
        remove_layer(case.url, "anna")


def test_a_layer_that_was_begun_and_not_ended_is_absent_and_the_next_call_ends_it(tmp_path):
    def case_at(name):
        layers = {ANNA: Stripes()}
        return write_case(
            tmp_path / name, Waves(), spacing_um=(1, 1), classes=CLASSES, layers=layers, storage=SMALL, name="a"
        )

    def unplugged(done, total):
        if done == 7:
            raise KeyboardInterrupt

    whole, broken = case_at("whole.ome.zarr"), case_at("broken.ome.zarr")
    add_layer(whole.url, BEN, Stripes(identity="ben"), storage=SMALL)
    with pytest.raises(KeyboardInterrupt):
        add_layer(broken.url, BEN, Stripes(identity="ben"), storage=SMALL, scheduler="synchronous", progress=unplugged)
    assert open_case(broken.url).annotators == ("anna",)
    steps = []
    resumed = add_layer(
        broken.url, BEN, Stripes(identity="ben"), storage=SMALL, progress=lambda done, _: steps.append(done)
    )
    assert resumed.annotators == ("anna", "ben")
    assert steps[0] > 5  # those that were there were not written again
    assert tree_hash(Path(broken.url)) == tree_hash(Path(whole.url))


def test_a_layer_that_does_not_fit_leaves_the_case_as_it_was(tmp_path):
    case = write_case(tmp_path / "a.ome.zarr", Waves(), spacing_um=(1, 1), classes=CLASSES, layers={ANNA: Stripes()})
    with pytest.raises(CaseFormatError, match="values 9"):
        add_layer(case.url, BEN, np.full((1111, 900), 9, np.uint8))
    with pytest.raises(CaseFormatError, match=r"\(5, 5\) px"):
        add_layer(case.url, BEN, np.zeros((5, 5), np.uint8))
    assert open_case(case.url) == case


def test_two_who_save_at_once_are_both_listed(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    case = write_case(
        tmp_path / "a.ome.zarr", np.zeros((1, 50, 50), np.uint8), spacing_um=(1, 1), classes=CLASSES, layers={}
    )
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add_layer(case.url, Layer(id=f"a{i}"), np.zeros((50, 50), np.uint8)), range(8)))
    assert set(open_case(case.url).annotators) == {f"a{i}" for i in range(8)}
