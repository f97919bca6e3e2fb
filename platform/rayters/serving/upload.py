"""What somebody sent: recognised by its content, measured by its header, and only then decoded.

| kind | recognised by | size claimed in |
| --- | --- | --- |
| PNG, JPEG | the first bytes | the picture's header |
| TIFF | the first bytes | the tags of its pages |
| NIfTI (also .gz) | `n+1` or `n+2` in its header | the header's dim, bitpix and vox_offset |
| DICOM | `DICM` after 128 bytes | Rows, Columns, NumberOfFrames, SamplesPerPixel |
| ZIP of DICOM slices | the first bytes | its directory, and every slice's header |

The claim is checked against the limit before a pixel is decoded, so a bomb costs its header. File names and media types are not asked.
"""

import io
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from casebook import CasebookError
from casebook.formats import Opened, open_image, reading
from casebook.formats.picture import open_picture
from rayters.serving.refusal import RefusedError

MOST_FILES = 4096  # slices of a series
KNOWN = "PNG, JPEG, TIFF, NIfTI (.nii, .nii.gz), DICOM, or a ZIP of the slices of one DICOM series"
_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a file says of itself. suffix: of its kind. pixel_bytes: that it would take in memory, at least."""

    suffix: str
    pixel_bytes: int


def examine(data: bytes, *, most_bytes: int) -> Claim:
    """Recognises a file and measures it, without decoding it.

    Raises:
        RefusedError: 415 for an unknown kind, 413 for a claim over the limit, 422 for a damaged header.
    """
    suffix = recognise(data)
    with _telling():
        claimed = _CLAIMS[suffix](data, most_bytes)
    if claimed > most_bytes:
        raise RefusedError(
            status=413,
            detail=f"the file claims {claimed:,} bytes of pixels, the limit is {most_bytes:,}: send a smaller piece, or let "
            "a case of a cohort be predicted",
        )
    return Claim(suffix=suffix, pixel_bytes=claimed)


def recognise(data: bytes) -> str:
    """The suffix of the kind that the first bytes are of.

    Raises:
        RefusedError: 415.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return ".png"
    if data[:3] == b"\xff\xd8\xff":
        return ".jpg"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return ".tif"
    if data[128:132] == b"DICM":
        return ".dcm"
    if data[:4] == b"PK\3\4":
        return ".zip"
    zipped = data[:2] == b"\x1f\x8b"
    head = _gunzip_head(data, 540) if zipped else data[:540]
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0":
        return ".nii.gz" if zipped else ".nii"
    raise RefusedError(status=415, detail=f"this is no picture or volume that is known here: send {KNOWN}")


def decode(data: bytes, claim: Claim) -> Opened:
    """The pixels, (C, *S), with spacing and frame where the file has them.

    Raises:
        RefusedError: 422 when the file is damaged.
    """
    if claim.suffix in (".png", ".jpg"):  # what most send; a folder for each would take as long as decoding it
        with _telling(), reading():
            return open_picture(io.BytesIO(data))
    with tempfile.TemporaryDirectory(prefix="rayters-upload-") as folder, _telling():
        path = Path(folder) / ("series" if claim.suffix == ".zip" else "file" + claim.suffix)
        if claim.suffix == ".zip":
            _unpack(data, path)
        else:
            path.write_bytes(data)
        opened = open_image(str(path))
        pixels: Any = opened.pixels
        if not isinstance(pixels, np.ndarray):  # a tiled file: read now, for the folder goes
            shape = tuple(pixels.shape[1:])
            opened = Opened(
                pixels=pixels.read((0,) * len(shape), shape), spacing_um=opened.spacing_um, frame=opened.frame
            )
    return opened


def _picture_claim(data: bytes, most_bytes: int) -> int:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # our own limit says what to do
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as picture:
        deep = 4 if picture.mode in ("I", "F") else 2 if picture.mode.startswith("I;") else 1
        return int(picture.width * picture.height * len(picture.getbands()) * deep)


def _tiff_claim(data: bytes, most_bytes: int) -> int:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        return sum(int(series.nbytes) for series in tiff.series[:1])


def _nifti_claim(data: bytes, most_bytes: int) -> int:
    head = _gunzip_head(data, 540) if data[:2] == b"\x1f\x8b" else data[:540]
    order = "<" if struct.unpack("<i", head[:4])[0] in (348, 540) else ">"
    if struct.unpack(order + "i", head[:4])[0] == 540:
        dim, bits = struct.unpack(order + "8q", head[16:80]), struct.unpack(order + "h", head[14:16])[0]
        offset = struct.unpack(order + "q", head[168:176])[0]
    else:
        dim, bits = struct.unpack(order + "8h", head[40:56]), struct.unpack(order + "h", head[72:74])[0]
        offset = struct.unpack(order + "f", head[108:112])[0]
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]) or not 0 <= offset <= 2**20:
        raise ValueError(f"dimensions {dim[1:]} from byte {offset} on")
    return int(prod(dim[1 : dim[0] + 1]) * max(1, abs(bits) // 8))


def _dicom_claim(data: bytes, most_bytes: int) -> int:
    import pydicom

    stream = io.BytesIO(data)
    stream.seek(132)
    heading: Any = pydicom.filereader._read_file_meta_info(stream)  # the data set itself would be inflated
    if str(heading.get("TransferSyntaxUID", "")) == _DEFLATED:
        raise RefusedError(status=415, detail="a deflated DICOM file is not read here: save it uncompressed")
    head = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    counts = [int(head.get(name, 1) or 1) for name in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")]
    if min(counts) < 1 or "Rows" not in head:
        raise ValueError(f"rows, columns, frames, samples = {counts}")
    return prod(counts) * max(1, int(head.get("BitsAllocated", 8)) // 8)


def _zip_claim(data: bytes, most_bytes: int) -> int:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
        if not 2 <= len(members) <= MOST_FILES:
            raise ValueError(f"{len(members)} files; 2 to {MOST_FILES} slices were expected")
        if (said := sum(m.file_size for m in members)) > 2 * most_bytes:
            return said
        claims = [_dicom_claim(_unzipped(archive, m), most_bytes) for m in members]
    return sum(claims)


def _unpack(data: bytes, folder: Path) -> None:
    """Slices under names of our own: an archive's paths are not used."""
    folder.mkdir()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for number, member in enumerate(m for m in archive.infolist() if not m.is_dir()):
            (folder / f"{number:05d}.dcm").write_bytes(_unzipped(archive, member))


def _unzipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member, and not a byte more than its directory entry says."""
    with archive.open(member) as file:
        data = file.read(member.file_size + 1)
    if len(data) != member.file_size or data[128:132] != b"DICM":
        raise ValueError("a member is no DICOM file, or not of the size that the archive says")
    return data


def _gunzip_head(data: bytes, count: int) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(data[:65536], count)
    except zlib.error:
        return b""


@contextmanager
def _telling() -> Iterator[None]:
    """Image libraries raise anything on damaged files; the sender hears one kind of answer."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RefusedError:
        raise
    except CasebookError as error:
        raise RefusedError(status=422, detail=str(error)) from None
    except Exception as error:
        text = (str(error).splitlines() or [""])[0][:160]
        raise RefusedError(
            status=422, detail=f"the file is damaged ({type(error).__name__}: {text}): export it again"
        ) from None


_CLAIMS = {
    ".png": _picture_claim,
    ".jpg": _picture_claim,
    ".tif": _tiff_claim,
    ".nii": _nifti_claim,
    ".nii.gz": _nifti_claim,
    ".dcm": _dicom_claim,
    ".zip": _zip_claim,
}
