"""What a viewer streams: ranges of what is stored, and layers that are computed where somebody looks."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from casebook import IGNORE, Layer, describe_case, open_case, write_case, write_cohort
from rayters.serving.derived import computed, derived, disagreement
from rayters.serving.gallery import confusions, glance
from rayters.serving.places import Places
from rayters.serving.refusal import RefusedError
from rayters.serving.stored import parse_range, read_piece
from rayters.serving.view_state import extras, view_state


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A case of 300 x 260 px; anna drew the left half, ben the right half, carl did not look at the upper one."""
    folder = tmp_path_factory.mktemp("s") / "cohort"
    anna, ben = np.zeros((300, 260), np.uint8), np.zeros((300, 260), np.uint8)
    anna[:, :130] = ben[:, 130:] = 1
    carl = anna.copy()
    carl[:150] = IGNORE
    layers = {Layer(id="anna"): anna, Layer(id="ben"): ben, Layer(id="carl"): carl}
    case = write_case(
        folder / "a.ome.zarr",
        np.full((1, 300, 260), 90, np.uint8),
        spacing_um=(0.5, 0.5),
        classes=("bg", "fg"),
        layers=layers,
    )
    write_cohort(folder, [describe_case(case, split="test", group="g")], name="c", classes=("bg", "fg"))
    return Places((str(folder),))


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_is_the_slice_of_the_bytes(size: int, first: int, last: int) -> None:
    whole = bytes(range(size))
    for header, wanted in (
        (f"bytes={first}-{last}", whole[first : last + 1]),
        (f"bytes=-{last}", whole[max(0, size - last) :]),
    ):
        try:
            start, stop = parse_range(header, size)
        except RefusedError:
            assert not wanted
        else:
            assert whole[start:stop] == (wanted if last or not header.startswith("bytes=-") else b"")


@pytest.mark.parametrize(
    "header", ["bytes=", "bytes=-", "bytes=1-2,4-5", "items=1-2", "bytes=a-b", "bytes=9999999999999999999-"]
)
def test_any_other_range_is_refused(header: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_range(header, 10)
    assert refused.value.status == 416


def test_bytes_of_a_case_are_those_on_the_disk(places: Places) -> None:
    path = "a.ome.zarr/zarr.json"
    whole = (Path(places.roots["cohort"]) / path).read_bytes()
    assert read_piece(places, "cohort", path, None).data == whole
    assert read_piece(places, "cohort", path, "bytes=-7").data == whole[-7:]
    assert read_piece(places, "cohort", path, None, head=True).size == len(whole)


@pytest.mark.parametrize(
    "path",
    [
        "cohort.parquet",
        "../secret",
        "a.ome.zarr/../cohort.parquet",
        "a.ome.zarr/nothing",
        "a.ome.zarr/labels",
        "a.ome.zarr//zarr.json",
        "",
    ],
)
def test_what_is_no_part_of_a_case_is_not_given(places: Places, path: str) -> None:
    for cohort in ("cohort", "other"):
        with pytest.raises(RefusedError) as refused:
            read_piece(places, cohort, path, None)
        assert refused.value.status == 404


def test_the_disagreement_counts_the_voices_of_those_who_looked() -> None:
    layers = np.array([[0, 1, 1, 255, 0], [0, 0, 255, 255, 1], [0, 1, 255, 255, 1]], np.uint8)
    third = round(255 * -(1 / 3 * np.log(1 / 3) + 2 / 3 * np.log(2 / 3)) / np.log(2))
    assert disagreement(layers, 2).tolist() == [0, third, 0, 0, third]


@pytest.mark.parametrize("kind", ["consensus", "disagreement"])
def test_a_derived_layer_reads_as_a_zarr_image_of_the_case_s_own_size(
    places: Places, kind: str, tmp_path: Path
) -> None:
    # another zarr implementation reads, from plain files, exactly what the server would send
    case = places.case("cohort/a")
    for level, shape in enumerate(case.shapes):
        chunks = [f"{level}/c/{y}/{x}" for y in range(-(-shape[0] // 256)) for x in range(-(-shape[1] // 256))]
        for path in ("zarr.json", f"{level}/zarr.json", *chunks):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(derived(case, kind, path))
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/{level}/"}}
        found = tensorstore.open(spec, open=True).result().read().result()
        layers = case.read_labels(case.annotators, level, (0, 0), shape)
        assert np.array_equal(found, computed(layers, kind, 2))
    document = json.loads((tmp_path / "zarr.json").read_text())
    assert [d["path"] for d in document["attributes"]["ome"]["multiscales"][0]["datasets"]] == [
        str(n) for n in range(len(case.shapes))
    ]


def test_the_metadata_of_a_derived_layer_is_valid_ome_zarr(places: Places) -> None:
    import yaozarrs

    document = json.loads(derived(places.case("cohort/a"), "disagreement", "zarr.json"))
    yaozarrs.validate_ome_object(document["attributes"]["ome"])


@pytest.mark.parametrize(
    "path", ["9/zarr.json", "0/c/9/9", "0/c/0", "0/c/-1/0", "0/c/0/x", "x", "0", "0/c/0/0/0", "", "0/c/²/0"]
)
def test_there_is_no_other_part_of_a_derived_layer(places: Places, path: str) -> None:
    assert derived(places.case("cohort/a"), "disagreement", path) is None


def test_a_glance_says_who_writes_what_where_the_consensus_is_known(places: Places) -> None:
    seen = glance(places.case("cohort/a"))
    # upper half: anna against ben, ties go to background; lower half: anna and carl outvote ben
    anna, ben, carl = confusions(seen.counts)
    assert carl == [[1.0, 0.0], [0.0, 1.0]]
    assert anna[1][1] == 1.0
    assert ben[1][1] == 0.0
    assert seen.agreement == pytest.approx((0 + 1 + 0) / 3)
    assert Image.open(io.BytesIO(seen.thumbnail)).size == (130, 150)


def test_the_view_names_every_layer_and_finds_predictions_beside_the_case(places: Places) -> None:
    case, root = places.case("cohort/a"), places.roots["cohort"]
    blank = np.zeros((1, 300, 260), np.uint8)
    place = f"{root}/predictions/digits/a/uncertainty.ome.zarr"
    write_case(place, blank, spacing_um=(0.5, 0.5), classes=("bg", "fg"), layers={})
    heats = extras("cohort", root, case, "a")
    assert [h.name for h in heats] == ["disagreement", "digits: uncertainty"]
    state = view_state("cohort", "a", "/data/cohort/a.ome.zarr/", case, heats, "side-by-side")
    assert [layer["name"] for layer in state["layers"]] == [
        "image",
        "anna",
        "ben",
        "carl",
        "consensus",
        *[h.name for h in heats],
    ]
    panels = [panel["layers"] for row in state["layout"]["children"] for panel in row["children"]]
    assert panels == [["image", name] for name in ("anna", "ben", "carl", "disagreement", "digits: uncertainty")]
    read_piece(places, "cohort", "predictions/digits/a/uncertainty.ome.zarr/zarr.json", None)


def test_neuroglancer_itself_understands_the_view(places: Places) -> None:
    neuroglancer = pytest.importorskip("neuroglancer")
    state = view_state("cohort", "a", "/data/cohort/a.ome.zarr/", places.case("cohort/a"), [], "one")
    parsed = neuroglancer.ViewerState(state)
    assert [layer.name for layer in parsed.layers] == ["image", "anna", "ben", "carl", "consensus"]
    assert parsed.layers["anna"].layer.selected_alpha == 0.45
    assert open_case(f"{places.roots['cohort']}/a.ome.zarr").shapes[0] == tuple(int(2 * p) for p in parsed.position)
