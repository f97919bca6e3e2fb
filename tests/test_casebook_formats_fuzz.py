"""Whatever happened to a file on its way here: a casebook error in words, or pixels of the promised shape. Never anything else."""

import json
import resource
import shutil
import warnings
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from casebook import CasebookError
from casebook.formats import open_image, reading
from casebook.formats.geojson import open_polygons
from casebook.ingest import Ingest, ingest

PIXELS = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
VOLUME = np.random.default_rng(0).integers(-500, 500, (6, 20, 16)).astype(np.int16)
LIMITS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
APERIO = "Aperio Image Library v11\n90x70 |AppMag = 20|MPP = 0.499"
RING = [[5, 5], [40, 5], [40, 40], [5, 40], [5, 5]]
POLYGONS = {"features": [{"geometry": {"type": "Polygon", "coordinates": [RING]}, "properties": {}}] * 3}


def save_sitk(path, compress):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOLUME), str(path), useCompression=compress)


def save_dicom(path):
    pydicom = pytest.importorskip("pydicom")
    made, meta = pydicom.Dataset(), pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.SeriesInstanceUID = made.FrameOfReferenceUID = made.StudyInstanceUID = "1.2.4"
    made.Modality, made.PatientID, made.PatientName, made.InstanceNumber = "CT", "p", "p", 1
    made.Rows, made.Columns, made.SamplesPerPixel, made.PixelRepresentation = 20, 16, 1, 1
    made.BitsAllocated = made.BitsStored = 16
    made.HighBit, made.PhotometricInterpretation = 15, "MONOCHROME2"
    made.PixelSpacing, made.SliceThickness = [0.5, 0.5], 2
    made.ImagePositionPatient, made.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    made.RescaleSlope, made.RescaleIntercept, made.PixelData = 1, -1024, VOLUME[0].tobytes()
    made.file_meta = meta
    pydicom.dcmwrite(path, made, enforce_file_format=True)


WRITERS = {
    "a.png": lambda p: Image.fromarray(PIXELS).save(p),
    "a.jpg": lambda p: Image.fromarray(PIXELS).save(p),
    "a.bmp": lambda p: Image.fromarray(PIXELS).save(p),
    "strips.tif": lambda p: tifffile.imwrite(p, PIXELS, photometric="rgb", compression="zlib"),
    "tiles.tif": lambda p: tifffile.imwrite(p, PIXELS, photometric="rgb", tile=(32, 32), compression="zlib"),
    "a.ome.tif": lambda p: tifffile.imwrite(p, VOLUME, ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.5}),
    "a.svs": lambda p: tifffile.imwrite(
        p, PIXELS, photometric="rgb", tile=(32, 32), compression="jpeg", description=APERIO
    ),
    "a.nii": lambda p: nibabel.save(nibabel.Nifti1Image(VOLUME.T, np.eye(4)), p),
    "a.nii.gz": lambda p: nibabel.save(nibabel.Nifti1Image(VOLUME.T, np.eye(4)), p),
    "a.nrrd": lambda p: save_sitk(p, compress=True),
    "a.mha": lambda p: save_sitk(p, compress=False),
    "a.dcm": save_dicom,
    "a.geojson": lambda p: p.write_text(json.dumps(POLYGONS)),
}


@pytest.fixture(scope="module", params=WRITERS)
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / request.param
    WRITERS[request.param](path)
    return path


def read_all(path):
    """Every pixel of the file, in the order of its boxes when it is read box by box."""
    if path.suffix == ".geojson":
        with reading():
            return open_polygons(str(path), (90, 70), ("background", "tumour")).read((0, 0), (90, 70))
    pixels = open_image(str(path)).pixels
    if isinstance(pixels, np.ndarray):
        return pixels
    height, width = pixels.shape[1:]
    return pixels.read((0, 0), (min(height, 512), min(width, 512)))


damages = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
    st.tuples(st.just("head"), st.integers(0, 400), st.integers(0, 255)),
    st.tuples(st.just("big"), st.integers(0, 400), st.just(0)),
    st.tuples(st.just("hole"), st.floats(0, 1), st.integers(1, 200)),
)


def damage(data, what, where, how):
    """Cut off, one bit flipped, one byte of the head set, four of the head set to 255, a stretch of zeros."""
    data = bytearray(data)
    at = min(len(data) - 1, where if isinstance(where, int) else int(where * len(data)))
    if what == "cut":
        del data[at:]
    elif what == "flip":
        data[at] ^= 1 << how
    elif what == "head":
        data[at] = how
    elif what == "big":
        data[at : at + 4] = b"\xff" * len(data[at : at + 4])
    else:
        data[at : at + how] = bytes(len(data[at : at + how]))
    return bytes(data)


@pytest.fixture(autouse=True)
def lazily(monkeypatch):
    """Large tiled TIFFs are read box by box; here small ones are too."""
    monkeypatch.setattr("casebook.formats.tiff.LAZY_PIXELS", 1)


@given(done=damages)
@LIMITS
def test_a_damaged_file_is_told_in_words_or_read(file, tmp_path_factory, done):
    folder = tmp_path_factory.mktemp("damaged")
    copy = folder / file.name
    copy.write_bytes(damage(file.read_bytes(), *done))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            said = f"pixels: {read_all(copy).size}"
        except CasebookError as error:
            said = str(error)
    assert ": " in said  # what was seen, and what to do
    assert said != "pixels: 0"
    shutil.rmtree(folder)


@pytest.mark.parametrize("tiled", [False, True], ids=["strip", "tile"])
def test_a_tiff_whose_few_bytes_unpack_to_gigabytes_is_refused_before_they_do(tmp_path, tiled):
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, PIXELS[:64, :64, 0].copy(), compression="zlib", tile=(64, 64) if tiled else None)
    packer = zlib.compressobj(9)
    zeros = b"".join([*(packer.compress(bytes(2**26)) for _ in range(32)), packer.flush()])  # 2 MB that stand for 2 GB
    kind = "Tile" if tiled else "Strip"
    with tifffile.TiffFile(path) as tiff:
        tags = [tiff.pages[0].tags[kind + name] for name in ("Offsets", "ByteCounts")]
        places = [tag.valueoffset for tag in tags]
    data = bytearray(path.read_bytes())
    for place, value in zip(places, (len(data), len(zeros)), strict=True):
        data[place : place + 4] = value.to_bytes(4, "little")
    path.write_bytes(data + zeros)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CasebookError, match="cannot be read"):
        read_all(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB: a quarter of a gigabyte


def test_what_a_bomb_of_a_drawing_would_need_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("casebook.formats.geojson.MOST_BYTES", 100)
    (tmp_path / "a.geojson").write_text(json.dumps(POLYGONS))
    with pytest.raises(CasebookError, match="export a label image instead"):
        read_all(tmp_path / "a.geojson")


def test_a_damaged_tile_that_is_found_while_writing_leaves_the_case_out_and_the_rest_in(tmp_path):
    for name in ("good", "bad"):
        tifffile.imwrite(tmp_path / f"{name}.tif", PIXELS, photometric="rgb", tile=(32, 32), compression="zlib")
        Image.fromarray(np.eye(90, 70, dtype=np.uint8)).save(tmp_path / f"{name}_anna.png")
    data = bytearray((tmp_path / "bad.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "bad.tif") as tiff:
        last = tiff.pages[0].dataoffsets[-1]
    data[last : last + 40] = bytes(40)
    (tmp_path / "bad.tif").write_bytes(data)
    outcome = ingest(Ingest(source=str(tmp_path), to=str(tmp_path / "out")))
    assert [row.case for row in outcome.cohort.cases] == ["good"]
    assert [note.file for note in outcome.failures] == ["bad.tif"]
    assert not (tmp_path / "out/cases/bad.ome.zarr/zarr.json").exists()
