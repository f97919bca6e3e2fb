"""Other people's validators, readers and suites agree with what we write, and we with what they call valid."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaozarrs
import zarr

from casebook import CasebookError, CaseFormatError, Layer, open_case, write_case
from casebook.ingest import Ingest, ingest
from casebook.layers import add_layer
from casebook.one_pass import Storage
from casebook.specification import departures, recommendations

DATA = Path(__file__).parents[2] / "shared/data/omezarr"
ANNA, BEN = Layer(id="anna", drawn_by="Dr A", expertise="pathologist"), Layer(id="ben", role="fusion")
CLASSES = ("background", "tumour", "stroma")


def flat(path, **options):
    image = np.random.default_rng(0).integers(0, 255, (3, 700, 500), dtype=np.uint8)
    labels = (image[0] % 3).astype(np.uint8)
    return write_case(
        path, image, spacing_um=(0.5, 0.25), classes=CLASSES, layers={ANNA: labels, BEN: labels}, **options
    )


def deep(path, **options):
    image = np.random.default_rng(0).integers(-900, 900, (1, 20, 200, 150), dtype=np.int16)
    return write_case(
        path,
        image,
        spacing_um=(2500, 700, 700),
        classes=CLASSES,
        layers={ANNA: (image[0] > 0).astype(np.uint8)},
        **options,
    )


def bare(path, **options):
    return write_case(path, np.zeros((2, 9, 7), np.uint16), spacing_um=(1, 1), classes=CLASSES, layers={}, **options)


cases = pytest.mark.parametrize(
    "make", [flat, deep, bare, lambda p: flat(p, storage=Storage(shards="always", codec="lz4"))]
)


@cases
def test_yaozarrs_finds_nothing_to_say(tmp_path, make):
    yaozarrs.validate_zarr_store(make(tmp_path / "a.ome.zarr").url)


@cases
def test_ome_zarr_models_accepts_it(tmp_path, make):
    from ome_zarr_models.v05.image import Image

    case = make(tmp_path / "a.ome.zarr")
    image = Image.from_zarr(zarr.open_group(case.url, mode="r"))
    assert len(image.datasets[0]) == len(case.shapes)
    if case.layers:
        assert image.labels.label_paths == [layer.id for layer in case.layers]


@cases
def test_the_official_schemas_accept_it(tmp_path, make):
    jsonschema = pytest.importorskip("jsonschema")
    if not DATA.exists():
        pytest.skip("the official schemas are not beside the project")
    case = make(tmp_path / "a.ome.zarr")
    check = validator(jsonschema, "0.5", "strict_image")
    check.validate(attributes(case.url))
    for layer in case.layers:
        validator(jsonschema, "0.5", "strict_label").validate(attributes(f"{case.url}/labels/{layer.id}"))


def attributes(url):
    return json.loads(Path(url, "zarr.json").read_text())["attributes"]


def validator(jsonschema, version, name):
    """The specification's own schema; references resolve to its other files."""
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    folder = DATA / f"ngff-spec-{version}/schemas"
    documents = [json.loads(path.read_text()) for path in folder.glob("*.schema")]
    registry = Registry().with_resources([(d["$id"], DRAFT202012.create_resource(d)) for d in documents])
    schema = json.loads((folder / f"{name}.schema").read_text())
    return jsonschema.Draft202012Validator(schema, registry=registry)


@cases
def test_zarr_python_and_tensorstore_read_the_same_pixels(tmp_path, make):
    case = make(tmp_path / "a.ome.zarr")
    group = zarr.open_group(case.url, mode="r")
    for level, shape in enumerate(case.shapes):
        array = group[str(level)]
        assert array.metadata.dimension_names == ("c", *case.axes)
        assert (array[:] == case.read_image(level, (0,) * len(shape), shape)).all()


@pytest.mark.parametrize("make", [flat, deep])
def test_napari_shows_the_image_and_one_layer_per_annotator(tmp_path, make):
    reader = pytest.importorskip("napari_ome_zarr")
    case = make(tmp_path / "a.ome.zarr")
    layers = reader.napari_get_reader(case.url)(case.url)
    kinds = [kind for *_, kind in layers]
    assert kinds.count("image") >= 1
    names = [meta["name"] for _, meta, kind in layers if kind == "labels"]
    assert len(names) == len(case.layers)
    assert all(layer.id in " ".join(map(str, names)) for layer in case.layers)


@pytest.mark.parametrize("options", [{}, {"storage": Storage(shards="always", codec="lz4")}])
@pytest.mark.parametrize("make", [flat, deep])
def test_neuroglancers_client_knows_every_codec_that_we_write(tmp_path, make, options):
    neuroglancer = pytest.importorskip("neuroglancer")
    client = "".join(
        p.read_text(errors="ignore") for p in (Path(neuroglancer.__file__).parent / "static/client").rglob("*.js")
    )
    case = make(tmp_path / "a.ome.zarr", **options)
    for path in Path(case.url).rglob("zarr.json"):
        for codec in codecs(json.loads(path.read_text()).get("codecs", [])):
            assert f'"{codec}"' in client


def codecs(chain):
    for codec in chain:
        yield codec["name"]
        yield from codecs(codec.get("configuration", {}).get("codecs", []))
        yield from codecs(codec.get("configuration", {}).get("index_codecs", []))


def suite(*names):
    """(version, file, name of the case, document, expected verdict) of the official suites."""
    found = []
    for version in ("0.4", "0.5"):
        for name in names:
            path = DATA / f"ngff-spec-{version}/tests/{name}_suite.json"
            tests = json.loads(path.read_text())["tests"] if path.exists() else []
            found += [(version, name, t["formerly"], t["data"], t["valid"]) for t in tests]
    return found


def official(*names):
    return pytest.mark.parametrize(
        ("version", "kind", "name", "data", "valid"),
        suite(*names) or [pytest.param(*[None] * 5, marks=pytest.mark.skip("the suites are not beside the project"))],
        ids=lambda v: v.replace("/", "-") if isinstance(v, str) else "",
    )


def of_version(data, version):
    """What stands under `ome` in 0.5, and at the top in 0.4."""
    return data.get("ome") if version == "0.5" else data


# The suites are JSON schemas, which cannot compare lengths: this one has a scale of two numbers for three axes, which the
# text of the specification forbids.
BEYOND_SCHEMAS = {("0.4", "valid/mismatch_axes_units.json")}


@official("image", "label", "strict_image", "strict_label")
def test_the_verdict_on_every_image_and_label_of_the_official_suites_is_theirs(version, kind, name, data, valid):
    ome = of_version(data, version)
    said = departures(ome) + (recommendations(ome) if kind.startswith("strict") else ())
    assert (not said) == (valid and (version, name) not in BEYOND_SCHEMAS), said


@official("image", "strict_image")
def test_every_valid_image_with_y_and_x_opens_and_the_others_say_why(tmp_path, version, kind, name, data, valid):
    place = store_of(tmp_path / "a.ome.zarr", data, version)
    if not valid or (version, name) in BEYOND_SCHEMAS:
        with_words(place)
        return
    axes = [axis["name"] for axis in of_version(data, version)["multiscales"][0]["axes"]]
    if {"y", "x"} <= set(axes) <= set("tczyx"):
        case = open_case(place)
        assert case.axes == tuple(axis for axis in axes if axis in "zyx")
    else:
        with pytest.raises(CaseFormatError, match=r"axes .* were expected"):
            open_case(place)


@official("label", "strict_label")
def test_every_description_of_labels_is_read_or_refused_in_words(tmp_path, version, kind, name, data, valid):
    """The suites' documents describe labels and have no levels; given those, the valid ones name the classes."""
    case = bare(tmp_path / "a.ome.zarr")
    write_with_label(tmp_path / "a.ome.zarr", of_version(data, version))
    if valid:
        values = {entry["label-value"] for entry in of_version(data, version)["image-label"]["colors"]}
        opened = open_case(case.url)
        assert [layer.id for layer in opened.layers] == ["theirs"]
        assert max(values) < len(opened.classes)
    else:
        with_words(case.url)


def write_with_label(folder, ome):
    """Adds a layer whose description is the suite's."""
    add_layer(str(folder), Layer(id="theirs"), np.zeros((9, 7), np.uint8))
    for place in (folder / "zarr.json", folder / "labels/theirs/zarr.json"):
        document = json.loads(place.read_text())
        document["attributes"].pop("casebook")  # a case of others
        if "theirs" in str(place):
            document["attributes"]["ome"]["image-label"] = ome["image-label"]
        place.write_text(json.dumps(document))


def with_words(place):
    """Opens, or is a casebook error that names the place."""
    try:
        said = open_case(place).url
    except CasebookError as error:
        said = str(error)
    assert "a.ome.zarr" in said


@official("plate", "well", "strict_plate", "strict_well")
def test_plates_and_wells_are_no_pictures_and_are_refused_in_words(tmp_path, version, kind, name, data, valid):
    with pytest.raises(CaseFormatError, match="no multiscales"):
        open_case(store_of(tmp_path / "a.ome.zarr", data, version))


def store_of(folder, attributes, version):
    """A zarr group with these attributes and tiny arrays wherever they name one."""
    folder.mkdir(parents=True)
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (folder / ("zarr.json" if version == "0.5" else ".zattrs")).write_text(
        json.dumps(document if version == "0.5" else attributes)
    )
    for multiscale in (of_version(attributes, version) or {}).get("multiscales") or []:
        axes = multiscale.get("axes") or []
        for dataset in multiscale.get("datasets") or []:
            if isinstance(dataset.get("path"), str) and axes:
                zarr.create_array(
                    folder / dataset["path"],
                    shape=(1,) * len(axes),
                    dtype="u1",
                    zarr_format=3 if version == "0.5" else 2,
                )
    return folder


@pytest.mark.skipif(not DATA.exists(), reason="the examples are not beside the project")
def test_a_0_4_image_comes_in_as_0_5_with_the_same_pixels_and_spacing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/simple.zarr").symlink_to(DATA / "neuroglancer/simple_0.4")
    config = Ingest(
        source=str(tmp_path / "in"), to=str(tmp_path / "out"), images="{case}.zarr", labels="{case}_{annotator}.png"
    )
    old, new = open_case(DATA / "neuroglancer/simple_0.4"), open_case(ingest(config).cohort.cases[0].url)
    origin, size = (0,) * len(old.axes), old.shapes[0]
    assert np.array_equal(new.read_image(0, origin, size), old.read_image(0, origin, size))
    assert new.spacing_um[0] == old.spacing_um[0]
    assert attributes(new.url)["ome"]["version"] == "0.5"
    yaozarrs.validate_zarr_store(new.url)


def test_what_is_not_valid_in_an_ome_zarr_of_others_is_told_when_it_comes_in(tmp_path):
    flat(tmp_path / "in/a.ome.zarr")
    place = tmp_path / "in/a.ome.zarr/zarr.json"
    document = json.loads(place.read_text())
    document["attributes"]["ome"]["omero"]["channels"][0]["window"]["end"] = "255"
    place.write_text(json.dumps(document))
    config = Ingest(source=str(tmp_path / "in"), to=str(tmp_path / "out"), images="{case}.ome.zarr",
                    labels="{case}_{annotator}.png", classes=CLASSES)  # fmt: skip
    outcome = ingest(config)
    assert outcome.written == 1
    assert ["omero.channels.window.end: '255'" in note.seen for note in outcome.notes] == [True]


@pytest.mark.skipif(not DATA.exists(), reason="the examples are not beside the project")
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_images_of_neuroglancers_own_suite_open(version):
    case = open_case(DATA / f"neuroglancer/simple_{version}")
    assert len(case.shapes) == 3
    for level, shape in enumerate(case.shapes):
        block = case.read_image(level, (0,) * len(shape), shape)
        assert block.shape == (case.channels, *shape)


@pytest.mark.skipif(not DATA.exists(), reason="the examples are not beside the project")
def test_version_0_6_is_refused_in_words():
    with pytest.raises(CaseFormatError):
        open_case(DATA / "neuroglancer/all_0.6/simple/rotation.zarr")
