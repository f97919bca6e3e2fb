"""Whatever is done to the bytes of a case or a cohort: a casebook error in words, or the right pixels. Never anything else."""

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import Zstd

from casebook import (
    CasebookError,
    CaseFormatError,
    CaseNotFoundError,
    CorruptChunkError,
    Layer,
    describe_case,
    open_case,
    open_cohort,
    write_case,
    write_cohort,
)
from casebook.arrays import forget_handles
from casebook.location import absolute_from, check_name, safe_name

IMAGE = np.random.default_rng(0).integers(0, 255, (2, 150, 140), dtype=np.uint8)
LABELS = (IMAGE[0] % 3).astype(np.uint8)
LIMITS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    write_case(
        folder / "a.ome.zarr", IMAGE, spacing_um=(1, 1), classes=("a", "b", "c"), layers={Layer(id="anna"): LABELS}
    )
    return folder / "a.ome.zarr"


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def read_all(url):
    """Everything, or a casebook error."""
    forget_handles()
    case = open_case(url)
    images = [case.read_image(level, (0, 0), shape) for level, shape in enumerate(case.shapes)]
    return images, [case.read_labels(("anna",), level, (0, 0), shape)[0] for level, shape in enumerate(case.shapes)]


def attempt(action):
    """What it returns, or None after a casebook error; every other error passes through and fails the test."""
    try:
        return action()
    except CasebookError:
        return None


def damaged(whole, tmp_path_factory, name, change):
    copy = tmp_path_factory.mktemp("damaged") / "a.ome.zarr"
    shutil.copytree(whole, copy)
    change(copy / name)
    return copy


@given(data=st.data())
@LIMITS
def test_a_flipped_bit_is_noticed_or_harmless(whole, tmp_path_factory, data):
    name = data.draw(st.sampled_from(files_of(whole)))
    bit = data.draw(st.integers(0, 8 * (whole / name).stat().st_size - 1))

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)

    copy = damaged(whole, tmp_path_factory, name, flip)
    read = attempt(lambda: read_all(copy))
    if read is not None:
        images, labels = read
        if "/c/" in name:  # chunks carry a checksum: what was read is what was written
            assert (images[0] == IMAGE).all()
            assert (labels[0] == LABELS).all()  # level 0 of anna
    shutil.rmtree(copy.parent)


@given(data=st.data())
@LIMITS
def test_a_truncated_or_missing_file_is_noticed(whole, tmp_path_factory, data):
    name = data.draw(st.sampled_from(files_of(whole)))
    keep = data.draw(st.integers(-1, (whole / name).stat().st_size - 1))
    copy = damaged(
        whole, tmp_path_factory, name, lambda p: p.unlink() if keep < 0 else p.write_bytes(p.read_bytes()[:keep])
    )
    if name == "labels/zarr.json" and keep < 0:
        assert open_case(copy).layers == ()  # nobody is listed, so nobody drew
    else:
        with pytest.raises(CasebookError) as caught:
            read_all(copy)
        assert str(copy) in str(caught.value) or "a.ome.zarr" in str(caught.value)
    shutil.rmtree(copy.parent)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def paths_in(value, here=()):
    yield here
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_in(inner, (*here, key))


@given(data=st.data())
@LIMITS
def test_any_value_anywhere_in_the_metadata_is_refused_in_words_or_harmless(whole, tmp_path_factory, data):
    name = data.draw(st.sampled_from([n for n in files_of(whole) if n.endswith(".json")]))
    document = json.loads((whole / name).read_text())
    where = data.draw(st.sampled_from(list(paths_in(document))[1:]))
    value = data.draw(anything)
    target = document
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = value
    copy = damaged(whole, tmp_path_factory, name, lambda p: p.write_text(json.dumps(document)))
    attempt(lambda: read_all(copy))
    shutil.rmtree(copy.parent)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("0/zarr.json", {"shape": [2, 2**20, 2**20]}, "2\\*\\*40"),
        ("0/zarr.json", {"shape": [2, -5, 10]}, "positive whole numbers"),
        ("0/zarr.json", {"data_type": "object"}, "damaged"),
    ],
)
def test_absurd_sizes_are_refused(whole, tmp_path_factory, name, change, words):
    copy = damaged(
        whole, tmp_path_factory, name, lambda p: p.write_text(json.dumps(json.loads(p.read_text()) | change))
    )
    with pytest.raises(CaseFormatError, match=words):
        open_case(copy)


def test_a_chunk_of_a_terabyte_is_refused_before_it_is_allocated(whole, tmp_path_factory):
    def grow(path: Path) -> None:
        document = json.loads(path.read_text())
        document["chunk_grid"]["configuration"]["chunk_shape"] = [2, 2**19, 2**19]
        path.write_text(json.dumps(document))

    with pytest.raises(CaseFormatError, match="chunks of"):
        open_case(damaged(whole, tmp_path_factory, "0/zarr.json", grow))


def test_a_chunk_of_few_bytes_that_unpacks_to_gigabytes_is_refused_before_it_does(whole, tmp_path_factory):
    bomb = Zstd().encode(bytes(2**28))
    assert len(bomb) < 2**16
    copy = damaged(whole, tmp_path_factory, "0/c/0/0/0", lambda path: path.write_bytes(bomb))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptChunkError, match=r"0/c/0/0/0 cannot be decoded"):
        read_all(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


@pytest.mark.parametrize("evil", ["../../etc", "/etc/passwd", "a/../../b", "s3://bucket/x", "..\\x", "", 3, None])
def test_paths_that_leave_the_case_are_refused(whole, tmp_path_factory, evil):
    def point_outside(path: Path) -> None:
        document = json.loads(path.read_text())
        document["attributes"]["ome"]["labels"] = [evil]
        path.write_text(json.dumps(document))

    with pytest.raises(CaseFormatError, match="not inside|damaged"):
        open_case(damaged(whole, tmp_path_factory, "labels/zarr.json", point_outside))


@given(st.text(max_size=200))
def test_a_safe_name_is_always_accepted(text):
    assert check_name(safe_name(text), "case") == safe_name(text)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "a b", "x" * 200, "a\0b", "C:", "end."])
def test_names_that_cannot_be_folders_are_refused(name):
    with pytest.raises(CaseFormatError, match="cannot be a folder name"):
        check_name(name, "case")


def test_a_table_that_points_outside_its_folder_is_refused():
    with pytest.raises(CaseFormatError, match="points outside"):
        absolute_from("../../secrets", "/data/cohort")


@given(data=st.data())
@LIMITS
def test_a_damaged_table_is_refused_or_the_same(whole, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("table")
    row = describe_case(open_case(whole), split="train", group="p")
    cohort = write_cohort(folder, [row], name="c", classes=("a", "b", "c"))
    content = bytearray((folder / "cohort.parquet").read_bytes())
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    (folder / "cohort.parquet").write_bytes(content)
    opened = attempt(lambda: open_cohort(folder))
    assert opened is None or opened.url == cohort.url
    shutil.rmtree(folder)


def test_an_error_of_a_chunk_is_a_corrupt_chunk_error_and_an_os_error():
    assert issubclass(CorruptChunkError, OSError)
    assert issubclass(CaseNotFoundError, FileNotFoundError)
    assert issubclass(CaseFormatError, ValueError)
