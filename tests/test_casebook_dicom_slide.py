"""A DICOM whole-slide series, as a scanner's archive hands it out, becomes a case."""

import json
from pathlib import Path

import numpy as np
import pytest

from casebook import CaseFormatError, open_case
from casebook.formats import open_image
from casebook.ingest import Ingest, ingest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("wsidicom")

TILE = 64
PIXELS = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"


def tiles(pixels):
    """TILED_FULL: every tile, row by row, those at the edge filled up with white."""
    height, width = (-(-n // TILE) * TILE for n in pixels.shape[:2])
    full = np.full((height, width, 3), 255, np.uint8)
    full[: pixels.shape[0], : pixels.shape[1]] = pixels
    return [full[y : y + TILE, x : x + TILE] for y in range(0, height, TILE) for x in range(0, width, TILE)]


def dataset(**values):
    made = pydicom.Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def save_level(path, pixels, spacing_mm, uids, *, kind="NONE", number=1):
    """One instance of the VL Whole Slide Microscopy IOD (PS3.3 A.32.8), uncompressed."""
    frames = tiles(pixels)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = WHOLE_SLIDE, pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    measures = dataset(PixelSpacing=[spacing_mm, spacing_mm], SliceThickness=0.004)
    frame_type = dataset(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", kind])
    code = dataset(CodeValue="123", CodingSchemeDesignator="DCM", CodeMeaning="brightfield")
    optics = dataset(OpticalPathIdentifier="0", ObjectiveLensPower=20.0, IlluminationTypeCodeSequence=[code],
                     IlluminationColorCodeSequence=[code], ICCProfile=b"\0" * 4)  # fmt: skip
    made = dataset(
        SOPClassUID=WHOLE_SLIDE, SOPInstanceUID=meta.MediaStorageSOPInstanceUID, Modality="SM", PatientID="p", PatientName="p",
        StudyInstanceUID=uids[0], SeriesInstanceUID=uids[1], FrameOfReferenceUID=uids[2], PositionReferenceIndicator="SLIDE_CORNER",
        Manufacturer="m", ManufacturerModelName="m", DeviceSerialNumber="1", SoftwareVersions="1", SeriesNumber=1,
        InstanceNumber=number, ImageType=["ORIGINAL", "PRIMARY", "VOLUME", kind], ContainerIdentifier="s",
        AcquisitionDateTime="20260101000000", ContentDate="20260101", ContentTime="000000", VolumetricProperties="VOLUME",
        ImagedVolumeWidth=pixels.shape[1] * spacing_mm, ImagedVolumeHeight=pixels.shape[0] * spacing_mm, ImagedVolumeDepth=1,
        SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7,
        PixelRepresentation=0, Rows=TILE, Columns=TILE, NumberOfFrames=len(frames), TotalPixelMatrixRows=pixels.shape[0],
        TotalPixelMatrixColumns=pixels.shape[1], TotalPixelMatrixFocalPlanes=1, NumberOfOpticalPaths=1,
        DimensionOrganizationType="TILED_FULL", ImageOrientationSlide=[0, -1, 0, -1, 0, 0], BurnedInAnnotation="NO",
        SpecimenLabelInImage="NO", FocusMethod="AUTO", ExtendedDepthOfField="NO", LossyImageCompression="00",
        OpticalPathSequence=[optics],
        TotalPixelMatrixOriginSequence=[dataset(XOffsetInSlideCoordinateSystem=20.0, YOffsetInSlideCoordinateSystem=40.0)],
        SharedFunctionalGroupsSequence=[
            dataset(PixelMeasuresSequence=[measures], WholeSlideMicroscopyImageFrameTypeSequence=[frame_type])
        ],
        PixelData=b"".join(frame.tobytes() for frame in frames),
    )  # fmt: skip
    made.file_meta = meta
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, made, enforce_file_format=True)


def save_slide(folder):
    """A base level of 0.5 um and one four times coarser."""
    uids = [pydicom.uid.generate_uid() for _ in range(3)]
    save_level(folder / "level0.dcm", PIXELS, 0.0005, uids)
    save_level(folder / "level1.dcm", PIXELS[::4, ::4], 0.002, uids, kind="RESAMPLED", number=2)
    return folder


def test_a_whole_slide_series_keeps_pixels_spacing_and_magnification(tmp_path):
    save_slide(tmp_path / "in/slide1")
    ring = [[10, 20], [110, 20], [110, 70], [10, 70], [10, 20]]
    drawn = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "in/slide1_anna.geojson").write_text(json.dumps(drawn))
    config = Ingest(source=str(tmp_path / "in"), to=str(tmp_path / "out"), images="{case}/",
                    labels="{case}_{annotator}.geojson")  # fmt: skip
    outcome = ingest(config)
    assert not outcome.failures
    case = open_case(outcome.cohort.cases[0].url)
    assert case.shapes[0] == (300, 200)
    assert case.spacing_um[0] == pytest.approx((0.5, 0.5))
    assert (case.read_image(0, (0, 0), (300, 200)) == np.moveaxis(PIXELS, -1, 0)).all()
    assert case.read_labels(("anna",), 0, (0, 0), (300, 200)).sum() == 100 * 50
    kept = json.loads(Path(case.url, "zarr.json").read_text())["attributes"]["casebook"]["provenance"]["notes"]
    assert kept["modality"] == "SM"
    assert float(kept["objective power"]) == 20


def test_one_file_of_a_slide_is_enough(tmp_path):
    save_slide(tmp_path)
    opened = open_image(str(tmp_path / "level0.dcm"))
    assert (opened.pixels.read((100, 50), (90, 80)) == np.moveaxis(PIXELS, -1, 0)[:, 100:190, 50:130]).all()


def test_a_truncated_slide_is_refused_and_named(tmp_path):
    folder = save_slide(tmp_path / "in/slide1")
    (folder / "level0.dcm").write_bytes((folder / "level0.dcm").read_bytes()[:60_000])

    def read():
        opened = open_image(str(folder))
        return opened.pixels.read((0, 0), (300, 200))

    with pytest.raises(CaseFormatError, match="restore it or export it again"):
        read()


def test_a_jpeg_slide_that_another_tool_wrote_is_read_as_that_tool_reads_it(tmp_path):
    from wsidicom import WsiDicom
    from wsidicom.codec import JpegSettings

    (tmp_path / "jpeg").mkdir()
    with WsiDicom.open(save_slide(tmp_path / "plain")) as plain:
        plain.save(tmp_path / "jpeg", transcoding=JpegSettings(quality=95), force_transcoding=True)
    opened = open_image(str(tmp_path / "jpeg"))
    with WsiDicom.open(tmp_path / "jpeg") as theirs:
        expected = np.asarray(theirs.read_region((50, 100), 0, (80, 90)))[..., :3]
    assert opened.spacing_um == pytest.approx((0.5, 0.5))
    assert (opened.pixels.read((100, 50), (90, 80)) == np.moveaxis(expected, -1, 0)).all()
    assert np.abs(expected.astype(int) - PIXELS[100:190, 50:130]).mean() < 40  # noise, which JPEG likes least
