"""Other people's validators, readers and suites agree with what we write, and we with what they call valid."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaozarrs
import zarr

from casebook import CasebookError, CaseFormatError, Layer, open_case, write_case
from casebook.one_pass import Storage
from casebook.opening import open_case as open_

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


def suite(version):
    """(name, attributes, valid) of the official image and label suites."""
    found = []
    for name in ("image_suite", "strict_image_suite"):
        path = DATA / f"ngff-spec-{version}/tests/{name}.json"
        if path.exists():
            found += [
                (f"{name}: {t['formerly']}", t["data"], t["valid"], "strict" in name)
                for t in json.loads(path.read_text())["tests"]
            ]
    return found


def store_of(folder, attributes, version):
    """A zarr group with these attributes and tiny arrays wherever they name one."""
    folder.mkdir(parents=True)
    ome = attributes.get("ome", {}) if version == "0.5" else attributes
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (folder / ("zarr.json" if version == "0.5" else ".zattrs")).write_text(
        json.dumps(document if version == "0.5" else attributes)
    )
    multiscales = ome.get("multiscales") if isinstance(ome, dict) else None
    for multiscale in multiscales if isinstance(multiscales, list) else []:
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


@pytest.mark.parametrize(
    ("version", "name", "data", "valid", "strict"),
    [(v, *row) for v in ("0.4", "0.5") for row in suite(v)],
    ids=lambda v: str(v)[:40] if isinstance(v, str) else "",
)
def test_the_official_suites_are_read_with_the_expected_verdict(tmp_path, version, name, data, valid, strict):
    """Valid images open, unless they are not pictures (no y and x); invalid ones are refused where a reader must care."""
    place = store_of(tmp_path / "a.ome.zarr", data, version)
    try:
        open_(place)
        opened, why = True, ""
    except CasebookError as error:
        opened, why = False, str(error)
    if valid:
        assert opened or "axes" in why or "time points" in why, why
    elif opened:
        assert strict or tolerated(data, version), f"{name} is invalid and was opened"


def tolerated(data, version):
    """What the specification forbids and a reader of pictures need not refuse: wrong or missing words beside the geometry."""
    ome = data.get("ome", {}) if version == "0.5" else data
    multiscale = ome["multiscales"][0]
    return bool(multiscale.get("datasets")) and bool(multiscale.get("axes"))


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
