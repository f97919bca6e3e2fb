"""A case gives back what was put in, whole or not at all."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from casebook import (
    IGNORE,
    CaseFormatError,
    CaseNotFoundError,
    ConflictError,
    CorruptChunkError,
    Layer,
    open_case,
    write_case,
)
from casebook.one_pass import Storage

ANNA, BEN = Layer(id="anna", drawn_by="Dr A", tool="QuPath"), Layer(id="ben")
CLASSES = ("background", "tumour", "stroma")


def picture(shape=(3, 300, 200), dtype="uint8", seed=0):
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def drawing(shape=(300, 200), seed=1):
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, IGNORE], np.uint8), shape)


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "a.ome.zarr") if request.param == "file" else f"memory://{tmp_path.name}/a.ome.zarr"


def test_a_slide_comes_back_bit_for_bit(url):
    image, a, b = picture(), drawing(), drawing(seed=2)
    case = write_case(url, image, spacing_um=(0.5, 0.5), classes=CLASSES, layers={ANNA: a, BEN: b})
    assert case.shapes == ((300, 200), (150, 100), (75, 50))
    assert case.spacing_um[1] == (1.0, 1.0)
    assert (case.read_image(0, (0, 0), (300, 200)) == image).all()
    assert (case.read_labels(("ben", "anna"), 0, (10, 20), (30, 40)) == np.stack([b, a])[:, 10:40, 20:60]).all()
    assert case.layers[0] == ANNA


def test_a_volume_keeps_its_thick_slices_until_the_pixels_are_as_thick(url):
    image, a = picture((1, 20, 200, 130), "int16"), drawing((20, 200, 130))
    case = write_case(url, image, spacing_um=(2500.0, 700.0, 700.0), classes=CLASSES, layers={ANNA: a})
    assert case.shapes == ((20, 200, 130), (20, 100, 65), (10, 50, 33))
    assert (case.read_image(0, (3, 5, 7), (9, 90, 80)) == image[:, 3:12, 5:95, 7:87]).all()
    assert (case.read_labels(("anna",), 0, (3, 5, 7), (9, 90, 80))[0] == a[3:12, 5:95, 7:87]).all()


def test_who_drew_nothing_here_yields_ignore_and_never_background(url):
    case = write_case(url, picture(), spacing_um=(1, 1), classes=CLASSES, layers={ANNA: drawing() * 0})
    planes = case.read_labels(("anna", "nobody"), 0, (0, 0), (5, 5))
    assert (planes[0] == 0).all()
    assert (planes[1] == IGNORE).all()


def test_a_case_is_small_when_pickled_and_reads_on_the_other_side(url):
    case = write_case(url, picture(), spacing_um=(1, 1), classes=CLASSES, layers={ANNA: drawing()})
    case.read_image(0, (0, 0), (9, 9))
    other = pickle.loads(pickle.dumps(case))
    assert other == case
    assert len(pickle.dumps(case)) < 4000
    assert (other.read_image(1, (0, 0), (9, 9)) == case.read_image(1, (0, 0), (9, 9))).all()


def test_a_chunk_is_never_bigger_than_the_image(url):
    case = write_case(url, picture((1, 40, 30)), spacing_um=(1, 1), classes=CLASSES, layers={ANNA: drawing((40, 30))})
    assert case.chunk_px == (40, 30)
    assert len(case.shapes) == 1


def test_a_box_that_leaves_the_image_is_refused_with_both_sizes(url):
    case = write_case(url, picture(), spacing_um=(1, 1), classes=CLASSES, layers={})
    with pytest.raises(ValueError, match=r"\(300, 200\) px; \(10, 10\) px from \(295, 0\)"):
        case.read_image(0, (295, 0), (10, 10))
    with pytest.raises(ValueError, match=r"levels 0..2, level 3"):
        case.read_image(3, (0, 0), (1, 1))


@pytest.mark.parametrize(
    ("image", "layers", "words"),
    [
        (picture().astype("float32"), {}, "float32.*uint16.*--floats"),
        (picture(), {ANNA: drawing((300, 201))}, r"'anna' is \(300, 201\) px, the image \(300, 200\)"),
        (picture(), {ANNA: drawing() * 0 + 7}, "values 7, but the classes are 0..2"),
        (picture(), {Layer(id="../ben"): drawing()}, "cannot be a folder name"),
        (picture(), {ANNA: drawing(), Layer(id="Anna"): drawing()}, "two layers share a name"),
    ],
)
def test_what_a_case_does_not_hold_is_refused_and_nothing_becomes_visible(url, image, layers, words):
    with pytest.raises(CaseFormatError, match=words):
        write_case(url, image, spacing_um=(1, 1), classes=CLASSES, layers=layers)
    with pytest.raises(CaseNotFoundError):
        open_case(url)


def test_a_whole_case_is_replaced_only_when_asked(url):
    write_case(url, picture(), spacing_um=(1, 1), classes=CLASSES, layers={ANNA: drawing()})
    with pytest.raises(ConflictError, match="already lies"):
        write_case(url, picture(), spacing_um=(1, 1), classes=CLASSES, layers={})
    small = picture((1, 50, 60), seed=4)
    case = write_case(url, small, spacing_um=(1, 1), classes=CLASSES, layers={}, existing="replace")
    assert case.layers == ()
    assert (case.read_image(0, (0, 0), (50, 60)) == small).all()


def test_a_case_that_does_not_exist_says_where_it_looked(url):
    with pytest.raises(CaseNotFoundError, match=r"no whole case lies at .*nowhere"):
        open_case(url + "/nowhere")


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_a_damaged_chunk_is_named_with_a_remedy(tmp_path, damage, dtype):
    case = write_case(
        tmp_path / "a.ome.zarr", picture(dtype=dtype), spacing_um=(1, 1), classes=CLASSES, layers={ANNA: drawing()}
    )
    for chunk, read in (
        (tmp_path / "a.ome.zarr/0/c/0/0/0", lambda: case.read_image(0, (0, 0), (9, 9))),
        (tmp_path / "a.ome.zarr/labels/anna/0/c/0/0", lambda: case.read_labels(("anna",), 0, (0, 0), (9, 9))),
    ):
        spoil(chunk, damage)
        with pytest.raises(CorruptChunkError, match=f"{chunk}.*restore"):
            read()


def spoil(chunk: Path, damage: str) -> None:
    data = bytearray(chunk.read_bytes())
    if damage == "delete":
        chunk.unlink()
    elif damage == "truncate":
        chunk.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 4
        chunk.write_bytes(data)


def test_a_damaged_chunk_in_another_store_is_named_too():
    import fsspec

    case = write_case("memory://damaged/a.ome.zarr", picture(), spacing_um=(1, 1), classes=CLASSES, layers={})
    fsspec.filesystem("memory").pipe_file("/damaged/a.ome.zarr/0/c/0/0/0", b"nonsense")
    with pytest.raises(CorruptChunkError, match=r"memory://damaged/a.ome.zarr/0/c/0/0/0"):
        case.read_image(0, (0, 0), (9, 9))


@pytest.mark.parametrize(
    "storage", [Storage(codec="lz4"), Storage(shards="always"), Storage(shards="always", codec="lz4")]
)
def test_codecs_and_shards_change_the_bytes_and_not_the_pixels(url, storage):
    image, a = picture((3, 700, 600)), drawing((700, 600))
    case = write_case(url, image, spacing_um=(1, 1), classes=CLASSES, layers={ANNA: a}, storage=storage)
    assert (case.read_image(0, (400, 300), (300, 300)) == image[:, 400:, 300:]).all()
    assert (case.read_labels(("anna",), 0, (400, 300), (300, 300))[0] == a[400:, 300:]).all()
    assert case.chunk_px == (512, 512)


def test_a_url_with_a_password_is_refused_without_repeating_it():
    with pytest.raises(CaseFormatError) as caught:
        open_case("s3://key:hunter2@bucket/case")
    assert "hunter2" not in str(caught.value)
