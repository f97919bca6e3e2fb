"""The guard, piece by piece: tokens, rate, places, uploads, logs. Each refusal has its test."""

import gzip
import io
import json
import logging
import os
import struct
import zipfile
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from casebook import Layer, describe_case, write_case, write_cohort
from rayters.serving.logs import LOGGER, log_request
from rayters.serving.places import Places
from rayters.serving.rate import RateLimit
from rayters.serving.refusal import RefusedError
from rayters.serving.tokens import Gate, issue, read_tokens, revoke
from rayters.serving.upload import decode, examine, recognise

MB = 2**20


# tokens


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    return str(tmp_path / "tokens.json")


def test_a_token_opens_what_its_scope_says_and_admin_opens_both(tokens: str) -> None:
    one, two = issue(tokens, scope="predict", days=1, holder="lab"), issue(tokens, scope="admin", days=1)
    gate = Gate(tokens)
    assert gate.check(f"Bearer {one}", "predict").holder == "lab"
    assert gate.check(f"Bearer {two}", "predict").scope == "admin"
    assert gate.check(f"bearer {two}", "admin").scope == "admin"
    with pytest.raises(RefusedError, match="this needs 'admin'") as refused:
        gate.check(f"Bearer {one}", "admin")
    assert refused.value.status == 403


def test_the_file_holds_hashes_and_no_token(tokens: str) -> None:
    secret = issue(tokens, scope="predict", days=1)
    assert secret.rpartition("_")[2] not in Path(tokens).read_text()


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic abc", "Bearer x", "Bearer rayters_00000000_" + "a" * 43])
def test_no_token_and_a_wrong_token_are_refused(tokens: str, header: str | None) -> None:
    issue(tokens, scope="admin", days=1)
    with pytest.raises(RefusedError) as refused:
        Gate(tokens).check(header, "predict")
    assert refused.value.status == 401


def test_a_right_id_with_a_wrong_secret_is_refused(tokens: str) -> None:
    secret = issue(tokens, scope="admin", days=1)
    with pytest.raises(RefusedError, match="not known"):
        Gate(tokens).check(f"Bearer {secret[:-2]}xx", "predict")


def test_an_expired_token_is_refused(tokens: str) -> None:
    secret = issue(tokens, scope="admin", days=1)
    tomorrow = (datetime.now(UTC) + timedelta(days=1, seconds=1)).timestamp()
    with pytest.raises(RefusedError, match="expired") as refused:
        Gate(tokens, clock=lambda: tomorrow).check(f"Bearer {secret}", "predict")
    assert refused.value.status == 401


def test_a_revoked_token_stops_working_without_a_restart(tokens: str) -> None:
    secret, now = issue(tokens, scope="admin", days=1), [1e9]
    gate = Gate(tokens, clock=lambda: now[0])
    cookie = gate.session(gate.check(f"Bearer {secret}", "admin"))
    revoke(tokens, read_tokens(tokens)[0].id)
    now[0] += 6
    with pytest.raises(RefusedError, match="not known"):
        gate.check(f"Bearer {secret}", "admin")
    with pytest.raises(RefusedError):
        gate.check_session(cookie)


def test_without_its_file_the_gate_is_shut(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text('{"tokens": [{"id": 1}]}')
    for url in (tmp_path / "tokens.json", tmp_path / "nowhere.json"):
        with pytest.raises(RefusedError):
            Gate(str(url)).check("Bearer rayters_00000000_" + "a" * 43, "predict")


def test_a_session_ends_and_can_not_be_made_up(tokens: str) -> None:
    secret, now = issue(tokens, scope="predict", days=1), [datetime.now(UTC).timestamp()]
    gate = Gate(tokens, clock=lambda: now[0])
    token = gate.check(f"Bearer {secret}", "predict")
    cookie = gate.session(token)
    assert gate.check_session(cookie) == token
    longer = f"{token.id}.{int(now[0]) + 10**6}.{cookie.rpartition('.')[2]}"
    for forged in (None, "", "x", "a.b.c", longer, cookie[:-1]):
        with pytest.raises(RefusedError):
            gate.check_session(forged)
    now[0] += 9 * 3600
    with pytest.raises(RefusedError):
        gate.check_session(cookie)


# rate


def test_a_burst_passes_and_then_one_as_often_as_the_rate_says() -> None:
    now = [0.0]
    rate = RateLimit(per_second=2, burst=3, clock=lambda: now[0])
    for _ in range(3):
        rate.take("a")
    with pytest.raises(RefusedError, match="more than 2 requests a second") as refused:
        rate.take("a")
    assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
    rate.take("b")  # another holder is not concerned
    now[0] = 0.5
    rate.take("a")
    with pytest.raises(RefusedError):
        rate.take("a")


def test_those_who_are_refused_do_not_wait_longer_for_asking() -> None:
    now = [0.0]
    rate = RateLimit(per_second=1, burst=1, clock=lambda: now[0])
    rate.take("a")
    for _ in range(50):
        with pytest.raises(RefusedError):
            rate.take("a")
    now[0] = 1.0
    rate.take("a")


# places


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    image = np.zeros((1, 8, 8), np.uint8)
    rows = []
    for place in (folder / "cohort", folder / "secret"):
        case = write_case(
            place / "a.ome.zarr",
            image,
            spacing_um=(1.0, 1.0),
            classes=("bg", "fg"),
            layers={Layer(id="anna"): image[0]},
        )
        rows.append(describe_case(case, split="train", group="g"))
    write_cohort(folder / "cohort", rows[:1], name="c", classes=("bg", "fg"))
    (folder / "cohort" / "link.ome.zarr").symlink_to(folder / "secret" / "a.ome.zarr")
    return folder / "cohort"


def test_a_case_is_found_by_name_and_by_its_url(cohort: Path) -> None:
    places = Places((str(cohort),))
    assert places.case("cohort/a").name == "a"
    assert places.case(f"{cohort}/a.ome.zarr").name == "a"


TRAVERSALS = [
    "{c}/../secret/a.ome.zarr", "{c}/a.ome.zarr/../../secret/a.ome.zarr", "{c}/./a.ome.zarr", "{c}//a.ome.zarr",
    "{c}/%2e%2e/secret/a.ome.zarr", "{c}\\..\\secret", "{c}x/a.ome.zarr", "{c}", "/etc/passwd", "file:///etc", "local://{c}/../secret",
    "cohort/../secret/a", "cohort/..", "../cohort/a", "", "a\x00b", "{c}/link.ome.zarr",
]  # fmt: skip
FORGERIES = [
    "http://169.254.169.254/latest/meta-data", "https://evil.example/a.ome.zarr", "s3://other/bucket", "gs://b/a", "ftp://h/a",
    "http://localhost:8265/api", "simplecache::http://evil.example/a", "zip://a::{c}/a.ome.zarr", "{c}/a::http://evil.example",
    "memory://a", "s3://user:pass@bucket/a", "reference://{c}", "github://o:r@main/a", "//evil.example/a", "\\\\evil\\share",
]  # fmt: skip


@pytest.mark.parametrize("wanted", TRAVERSALS + FORGERIES)
def test_nothing_outside_the_roots_is_read(cohort: Path, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places((str(cohort),))
    places.cohort("cohort")
    monkeypatch.setattr("rayters.serving.places.open_case", lambda url: pytest.fail(f"{url} was opened"))
    with pytest.raises(RefusedError) as refused:
        places.case(wanted.format(c=cohort))
    assert refused.value.status == 404
    assert "secret" not in refused.value.detail


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.text(alphabet="./\\%:?#@ae2f", max_size=20))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_for_stays_inside(cohort: Path, free: str, sly: str) -> None:
    places = Places((str(cohort),))
    statuses = {404}
    for wanted in (free, sly, f"{cohort}/{sly}", f"cohort/{free}"):
        try:
            case = places.case(wanted)
        except RefusedError as refused:
            statuses.add(refused.status)
        else:
            assert os.path.realpath(case.url).startswith(os.path.realpath(cohort) + os.sep)
    assert statuses == {404}


def test_a_table_that_points_outside_is_not_followed(cohort: Path, tmp_path: Path) -> None:
    from casebook import open_cohort

    row = open_cohort(cohort).cases[0]
    write_cohort(tmp_path / "sly", [row], name="sly", classes=("bg", "fg"))
    with pytest.raises(RefusedError):
        Places((str(tmp_path / "sly"),)).case("sly/a")


# uploads


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tiff(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels)
    return out.getvalue()


def nifti(pixels: np.ndarray) -> bytes:
    return nibabel.Nifti1Image(pixels, np.diag([0.5, 0.6, 2.0, 1.0])).to_bytes()


def dicom(pixels: np.ndarray, z: float = 0.0) -> bytes:
    """A CT slice."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{int(z) + 1}"
    data = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    about = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": f"1.2.3.{int(z) + 1}", "SeriesInstanceUID": "1.2.4",
        "StudyInstanceUID": "1.2.5", "FrameOfReferenceUID": "1.2.6", "Modality": "CT", "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16,
        "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0, "PixelSpacing": [0.5, 0.5], "SliceThickness": 2,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, z], "RescaleSlope": 1,
        "RescaleIntercept": 0, "PatientName": "", "PatientID": "", "StudyDate": "", "StudyTime": "", "StudyID": "",
        "PatientBirthDate": "", "PatientSex": "", "AccessionNumber": "", "ReferringPhysicianName": "", "Manufacturer": "",
        "SeriesNumber": 1, "InstanceNumber": int(z) + 1, "PositionReferenceIndicator": "", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    }  # fmt: skip
    for keyword, value in about.items():
        setattr(data, keyword, value)
    data.PixelData = pixels.astype("<u2").tobytes()
    out = io.BytesIO()
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()


def series(volume: np.ndarray) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for z, plane in enumerate(volume):
            archive.writestr(f"../../slice{z}", dicom(plane, z=float(z) * 2))
    return out.getvalue()


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
VOLUME = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)


@pytest.mark.parametrize(
    ("data", "suffix", "pixels"),
    [
        (png(GREY), ".png", GREY[None]),
        (tiff(GREY), ".tif", GREY[None]),
        (nifti(VOLUME.T), ".nii", VOLUME[None]),
        (gzip.compress(nifti(VOLUME.T)), ".nii.gz", VOLUME[None]),
        (dicom(GREY), ".dcm", GREY[None, None]),
        (series(VOLUME), ".zip", VOLUME[None, ::-1]),  # slices in the order in which a right-handed frame has them
    ],
    ids=["PNG", "TIFF", "NIfTI", "NIfTI.gz", "DICOM", "ZIP of DICOM"],
)
def test_each_kind_is_recognised_by_its_content_and_decoded(data: bytes, suffix: str, pixels: np.ndarray) -> None:
    claim = examine(data, most_bytes=MB)
    assert claim.suffix == suffix
    assert claim.pixel_bytes >= pixels.size
    assert np.array_equal(decode(data, claim).pixels, pixels)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\x89PN", b"%PDF-1.7", b"<svg/>", b"GIF89a", b"\x1f\x8b rubbish", b"\0" * 600, b"BM" + b"\0" * 60],
)
def test_an_unknown_kind_is_refused(data: bytes) -> None:
    with pytest.raises(RefusedError, match="send PNG") as refused:
        recognise(data)
    assert refused.value.status == 415


def png_bomb(side: int) -> bytes:
    """A well-formed PNG of a few kilobytes that claims side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")
    )


def nifti_claiming(shape: tuple[int, int, int], offset: float = 352.0) -> bytes:
    head = bytearray(nifti(np.zeros((2, 2, 2), np.uint8)))
    head[40:56] = struct.pack("<8h", 3, *shape, 1, 1, 1, 1)
    head[108:112] = struct.pack("<f", offset)
    return bytes(head)


def dicom_claiming(rows: int, frames: int) -> bytes:
    import pydicom

    data = pydicom.dcmread(io.BytesIO(dicom(GREY)))
    data.Rows, data.NumberOfFrames = rows, frames
    out = io.BytesIO()
    pydicom.dcmwrite(out, data)
    return out.getvalue()


def tiff_claiming(side: int) -> bytes:
    data = bytearray(tiff(np.zeros((16, 16), np.uint8)))
    for tag in (256, 257):  # width and length of the only page
        at = data.index(struct.pack("<H", tag), 8)
        data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, side)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        png_bomb(100_000),
        tiff_claiming(100_000),
        nifti_claiming((30_000, 30_000, 12)),
        gzip.compress(nifti_claiming((30_000, 30_000, 12))),
        dicom_claiming(60_000, 30_000),
    ],
    ids=["PNG", "TIFF", "NIfTI", "NIfTI.gz", "DICOM"],
)
def test_a_claim_of_ten_gigabytes_is_refused_before_a_pixel_is_decoded(data: bytes) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RefusedError, match="the limit is") as refused:
        examine(data, most_bytes=64 * MB)
    assert refused.value.status == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # kilobytes


def test_a_gigabyte_of_zeros_in_a_small_archive_is_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ab":
            with archive.open(name, "w") as file:
                for _ in range(80):
                    file.write(bytes(MB))
    with pytest.raises(RefusedError, match="the limit is"):
        examine(out.getvalue(), most_bytes=64 * MB)


def test_an_archive_that_lies_about_its_members_is_refused() -> None:
    data = bytearray(series(VOLUME))
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", 100)  # a smaller uncompressed size than there is
    with pytest.raises(RefusedError) as refused:
        examine(bytes(data), most_bytes=MB)
    assert refused.value.status == 422


def test_pixels_that_start_a_gigabyte_on_are_refused() -> None:
    # through gzip, a thousandth of what is skipped is sent
    with pytest.raises(RefusedError, match="damaged"):
        examine(nifti_claiming((2, 2, 2), offset=1e9), most_bytes=MB)


WHOLE = {".png": png(GREY), ".tif": tiff(GREY), ".nii": nifti(VOLUME.T), ".dcm": dicom(GREY), ".zip": series(VOLUME)}


@given(st.sampled_from(sorted(WHOLE)), st.data())
@settings(max_examples=150, deadline=None)
def test_a_truncated_or_damaged_file_is_decoded_or_refused_and_nothing_else(kind: str, draw: st.DataObject) -> None:
    data = bytearray(WHOLE[kind])
    if draw.draw(st.booleans(), "truncate"):
        data = data[: draw.draw(st.integers(0, len(data) - 1))]
    for _ in range(draw.draw(st.integers(0, 4)) if data else 0):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    nbytes, status = 0, 422
    try:
        claim = examine(bytes(data), most_bytes=MB)
        nbytes = decode(bytes(data), claim).pixels.nbytes
    except RefusedError as refused:
        status = refused.status
    assert nbytes <= 16 * MB
    assert status in (413, 415, 422)


# logs


def test_a_log_line_is_json_of_fixed_fields_and_can_not_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.propagate = True
    with caplog.at_level(logging.INFO, logger=LOGGER.name):
        log_request(
            method="GET", route='/v1/models\n{"status": 200}', status=404, seconds=0.01, bytes_in=0, bytes_out=2,
            holder="Bearer rayters_x y", request="r1",
        )  # fmt: skip
    line = json.loads(caplog.messages[-1])
    assert (line["route"], line["holder"], line["status"]) == ("-", "-", 404)
    assert set(line) == {"at", "method", "route", "status", "ms", "bytes_in", "bytes_out", "holder", "request"}
