"""Real files of scanners and hospitals come in with their spacing and their place; what disagrees is refused."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from casebook import IGNORE, CaseFormatError, open_case
from casebook.formats import check_same_place, open_image
from casebook.formats.geojson import fill, open_polygons
from casebook.ingest import Ingest, ingest

DATA = Path(__file__).parents[2] / "shared" / "data"


def needs(folder):
    return pytest.mark.skipif(not (DATA / folder).exists(), reason=f"the data set {folder} is not beside the project")


def ingested(tmp_path, **options):
    outcome = ingest(Ingest(source=str(tmp_path / "in"), to=str(tmp_path / "out"), **options))
    assert not outcome.failures, outcome.failures
    return outcome, open_case(outcome.cohort.cases[0].url)


def linked(tmp_path, **files):
    """A folder `in` with links to files of the data set; __ in a key is a slash, and the suffix is the file's own."""
    for name, target in files.items():
        place = tmp_path / "in" / (name.replace("__", "/") + ("" if target.is_dir() else target.suffix))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    return tmp_path / "in"


@needs("slides")
def test_an_aperio_slide_keeps_its_pixels_its_spacing_and_its_magnification(tmp_path):
    import openslide

    svs = DATA / "slides/cmu-1-small-region.svs"
    linked(tmp_path, slide1=svs)
    polygons = [feature("tumour", [[[100, 100], [900, 100], [900, 700], [100, 700]]])]
    (tmp_path / "in/slide1_anna.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": polygons}))
    outcome, case = ingested(tmp_path, classes=("background", "tumour"))
    slide = openslide.OpenSlide(svs)
    assert case.shapes[0] == (2967, 2220)
    assert case.spacing_um[0] == (0.499, 0.499)
    expected = np.moveaxis(np.asarray(slide.read_region((1000, 900), 0, (300, 200)))[..., :3], -1, 0)
    assert (case.read_image(0, (900, 1000), (200, 300)) == expected).all()
    labels = case.read_labels(("anna",), 0, (0, 0), case.shapes[0])[0]
    assert labels.sum() == 800 * 600
    assert labels[100, 100] == labels[699, 899] == 1
    assert sum(outcome.cohort.cases[0].foreground[1]) == 800 * 600


@needs("dicom")
def test_a_ct_series_and_its_segmentations_become_one_case(tmp_path):
    data = DATA / "dicom/dcmqi"
    (tmp_path / "in/p1").mkdir(parents=True)
    for name in ("01", "02", "03"):
        linked(tmp_path, **{f"p1__ct__{name}": data / f"ct-3slice/{name}.dcm"})
    linked(tmp_path, p1__anna=data / "liver.dcm")
    _, case = ingested(tmp_path, images="{case}/ct/", labels="{case}/{annotator}.dcm", classes=("background", "liver"))
    series = SimpleITK.ReadImage([str(data / f"ct-3slice/0{k}.dcm") for k in (1, 2, 3)])
    expected = SimpleITK.GetArrayFromImage(series)
    assert case.shapes[0] == (3, 512, 512)
    assert case.dtype == "int16"
    image = case.read_image(0, (0, 0, 0), (3, 512, 512))[0]
    labels = case.read_labels(("anna",), 0, (0, 0, 0), (3, 512, 512))[0]
    truth = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(data / "liver_seg.nrrd")))
    assert sorted(int((s != 0).sum()) for s in labels) == sorted(int((s != 0).sum()) for s in truth)
    assert (image == expected).all() or (image == expected[::-1]).all()
    assert labels.sum() == (truth != 0).sum() > 0


@needs("dicom")
def test_overlapping_segments_lie_on_top_of_each_other_in_the_order_of_the_classes(tmp_path):
    data = DATA / "dicom/dcmqi"
    for name in ("01", "02", "03"):
        linked(tmp_path, **{f"p1__ct__{name}": data / f"ct-3slice/{name}.dcm"})
    linked(tmp_path, p1__anna=data / "partial_overlaps.dcm")
    colours = ("background", "GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE")
    _, case = ingested(tmp_path, images="{case}/ct/", labels="{case}/{annotator}.dcm", classes=colours)
    labels = case.read_labels(("anna",), 0, (0, 0, 0), (3, 512, 512))[0]
    assert labels.max() == 5
    from casebook.formats.dicom import read_segmentation

    image = open_image(str(tmp_path / "in/p1/ct"))
    with pytest.raises(CaseFormatError, match=r"GREEN.*are no classes"):
        read_segmentation(str(data / "partial_overlaps.dcm"), image, ("background", "x", "y"))


@needs("dicom")
@pytest.mark.parametrize("name", ["sparse-labelmap-noppv.dcm", "sparse-labelmap-ppv5.dcm"])
def test_a_sparse_labelmap_lands_on_the_slices_that_it_has(name):
    from casebook.formats.dicom import read_segmentation

    data = DATA / "dicom/dcmqi"
    image = open_image(str(data / "24x38x3/image") + "/")
    labels = read_segmentation(str(data / name), image, ("background", "liver"))
    assert labels.shape == (3, 38, 24)
    written = sorted(int(s.sum()) for s in labels)
    kind = "noppv" if "noppv" in name else "ppv5"
    truth = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(data / f"sparse_labelmap_{kind}_seg.nrrd")))
    assert [n for n in written if n] == sorted(n for n in (int((s == 1).sum()) for s in truth) if n)


@needs("dicom")
def test_a_segmentation_of_another_scan_is_refused_with_both_frames():
    from casebook.formats.dicom import read_segmentation

    data = DATA / "dicom/dcmqi"
    with pytest.raises(CaseFormatError, match=r"frame of reference .*23882\.1, the image in .*14762603"):
        read_segmentation(
            str(data / "liver.dcm"), open_image(str(data / "24x38x3/image") + "/"), ("background", "liver")
        )


@needs("volumes")
def test_nrrd_volumes_and_their_labels_keep_spacing_and_place(tmp_path):
    linked(tmp_path, brain__image=DATA / "volumes/brain1_image.nrrd", brain__anna=DATA / "volumes/brain1_label.nrrd")
    _, case = ingested(tmp_path, classes=("background", "tumour"))
    assert case.shapes[0] == (25, 256, 256)
    assert case.spacing_um[0] == pytest.approx((6500, 781.25, 781.25))
    assert case.dtype == "int16"


def test_the_same_volume_as_nifti_and_nrrd_lies_in_the_same_place(tmp_path):
    volume = SimpleITK.GetImageFromArray(np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4))
    volume.SetSpacing((0.5, 0.6, 3.0))
    volume.SetOrigin((10, -20, 30))
    volume.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    SimpleITK.WriteImage(volume, str(tmp_path / "a.nrrd"))
    SimpleITK.WriteImage(volume, str(tmp_path / "a.nii.gz"))
    a, b = open_image(str(tmp_path / "a.nrrd")), open_image(str(tmp_path / "a.nii.gz"))
    check_same_place(a, b)
    assert (np.asarray(a.pixels) == np.asarray(b.pixels)).all()
    volume.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    SimpleITK.WriteImage(volume, str(tmp_path / "b.nii.gz"))
    with pytest.raises(CaseFormatError, match="mm from the image"):
        check_same_place(a, open_image(str(tmp_path / "b.nii.gz")))


def test_a_large_tiled_tiff_is_read_box_by_box(tmp_path, monkeypatch):
    import casebook.formats.tiff as tiff

    monkeypatch.setattr(tiff, "LAZY_PIXELS", 1000)
    pixels = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    mask = (pixels[..., 0] > 128).astype(np.uint8) * 255
    (tmp_path / "in").mkdir()
    tifffile.imwrite(
        tmp_path / "in/a.tif",
        pixels,
        tile=(64, 64),
        photometric="rgb",
        resolutionunit="CENTIMETER",
        resolution=(20000, 20000),
    )
    tifffile.imwrite(tmp_path / "in/a_anna.tif", mask, tile=(64, 64))
    opened = open_image(str(tmp_path / "in/a.tif"))
    assert not isinstance(opened.pixels, np.ndarray)
    _, case = ingested(tmp_path, values=("0=background", "255=foreground"))
    assert case.spacing_um[0] == (0.5, 0.5)
    assert (case.read_image(0, (7, 9), (200, 150)) == np.moveaxis(pixels, -1, 0)[:, 7:207, 9:159]).all()
    assert (case.read_labels(("anna",), 0, (0, 0), (300, 200))[0] == mask // 255).all()
    untold = ingest(Ingest(source=str(tmp_path / "in"), to=str(tmp_path / "out2")))
    assert "too many to look at first" in untold.failures[0].seen


def test_a_foreign_ome_zarr_comes_in_with_its_labels(tmp_path):
    from casebook import Layer, write_case

    image, labels = np.arange(40 * 30, dtype=np.uint16).reshape(1, 40, 30), np.eye(40, 30, dtype=np.uint8)
    write_case(
        tmp_path / "in/a.ome.zarr",
        image,
        spacing_um=(2, 2),
        classes=("background", "foreground"),
        layers={Layer(id="anna"): labels},
    )
    _, case = ingested(tmp_path, images="{case}.ome.zarr", labels="{case}_{annotator}.png")
    assert (case.read_labels(("anna",), 0, (0, 0), (40, 30))[0] == labels).all()
    assert case.spacing_um == ((2.0, 2.0),)


def feature(name, coordinates, kind="Polygon"):
    properties = {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}} if name else {}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def rasterised(tmp_path, features, shape=(20, 30), classes=("background", "tumour", "stroma"), tile=None):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    source = open_polygons(str(path), shape, classes)
    if tile is None:
        return source.read((0, 0), shape)
    rows = [
        [source.read((y, x), (min(tile, shape[0] - y), min(tile, shape[1] - x))) for x in range(0, shape[1], tile)]
        for y in range(0, shape[0], tile)
    ]
    return np.block(rows)


def square(y, x, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def test_holes_and_multipolygons_are_what_even_odd_says(tmp_path):
    out = rasterised(
        tmp_path, [feature("tumour", [[square(2, 3, 10), square(4, 5, 4)], [square(15, 20, 3)]], "MultiPolygon")]
    )
    assert out.sum() == 100 - 16 + 9
    assert out[2, 3] == 1
    assert out[5, 6] == 0
    assert out[15, 20] == 1


def test_later_classes_lie_on_top_and_the_region_says_where_the_annotator_looked(tmp_path):
    out = rasterised(
        tmp_path,
        [
            feature("stroma", [square(0, 0, 5)]),
            feature("Tumour", [square(3, 3, 5)]),
            feature("Region*", [square(0, 0, 10)]),
        ],
    )
    assert out[4, 4] == 2
    assert out[6, 6] == 1
    assert out[9, 9] == 0
    assert out[10, 10] == out[0, 29] == IGNORE


def test_a_derived_class_of_qupath_is_named_as_qupath_shows_it(tmp_path):
    derived = feature("x", [square(0, 0, 5)])
    derived["properties"]["classification"] = {"names": ["Tumour", "Positive"], "color": [200, 0, 0]}
    assert rasterised(tmp_path, [derived], classes=("background", "stroma", "tumour: positive"))[2, 2] == 2


@given(st.lists(st.tuples(st.floats(-10, 40), st.floats(-10, 30)), min_size=3, max_size=12), st.integers(1, 11))
@settings(max_examples=60, deadline=None)
def test_tiles_agree_with_the_whole_even_where_a_polygon_crosses_itself(points, tile):
    ring = np.array([[y, x] for x, y in points])
    edges = np.concatenate([ring, np.roll(ring, -1, axis=0)], axis=1)
    whole = fill(edges, (0, 0), (20, 30))
    for y in range(0, 20, tile):
        for x in range(0, 30, tile):
            size = (min(tile, 20 - y), min(tile, 30 - x))
            assert (fill(edges, (y, x), size) == whole[y : y + size[0], x : x + size[1]]).all()


def test_a_disc_has_the_area_of_a_disc(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = [[150 + 100 * np.cos(a), 120 + 100 * np.sin(a)] for a in angle]
    out = rasterised(tmp_path, [feature("tumour", [ring])], shape=(260, 300), tile=64)
    assert abs(out.sum() / (np.pi * 100**2) - 1) < 2e-3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("3", "no list of features"),
        (json.dumps([feature("necrosis", [square(0, 0, 5)])]), "'necrosis', the classes are"),
        (json.dumps([feature("tumour", [0, 1], "Point")]), "no inside"),
        (json.dumps([feature("tumour", [square(500, 0, 5)])]), "outside the image of 20 x 30 px"),
        (json.dumps([feature("tumour", [[[0, 0], [1, float("nan")], [3, 3]]])]), "NaN"),
        (json.dumps([feature("tumour", [[[0, 0], [1, "x"], [3, 3]]])]), "no GeoJSON polygon"),
        (json.dumps([feature("tumour", [[[0, 0]]])]), "1 points"),
        (json.dumps([{"type": "Feature"}]), r"feature 0"),
    ],
)  # fmt: skip
def test_a_drawing_that_cannot_be_meant_is_refused(tmp_path, content, words):
    path = tmp_path / "a.geojson"
    path.write_text(content)
    with pytest.raises(CaseFormatError, match=words):
        open_polygons(str(path), (20, 30), ("background", "tumour", "stroma"))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii.gz", "a.nii", "a.nrrd", "a.svs", "a.dcm", "a.jpg", "a.ndpi"])
@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xff\xff\xff\xff\xff\xff\xff", b"II*\0\x08\0\0\0"]
)
def test_rubbish_is_a_casebook_error_whatever_its_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CaseFormatError):
        open_image(str(tmp_path / name))


def test_a_tiff_that_promises_terabytes_is_refused(tmp_path):
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for name in ("ImageLength", "ImageWidth"):
            tag = tiff.pages[0].tags[name]
            data[tag.valueoffset : tag.valueoffset + 4] = (2**20).to_bytes(4, "little")[: tag.dtype.value and 4]
    path.write_bytes(data)
    with pytest.raises(CaseFormatError):
        open_image(str(path))


def test_a_nifti_that_promises_terabytes_is_refused(tmp_path):
    path = tmp_path / "bomb.nii"
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    nibabel.save(image, path)
    data = bytearray(path.read_bytes())
    data[42:48] = (30000).to_bytes(2, "little") * 3
    path.write_bytes(data)
    with pytest.raises(CaseFormatError, match="claims"):
        open_image(str(path))
