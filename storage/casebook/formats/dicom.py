"""DICOM: a series of slices as one volume, DICOM-SEG as label maps, whole slides box by box.

Geometry goes through highdicom, whose affine maps (slice, row, column) to millimetres of the patient.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import wsidicom
from numpy.typing import NDArray

from casebook.errors import CaseFormatError
from casebook.formats.opened import Frame, Opened
from casebook.formats.reading import reading
from casebook.source import file_identity

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_NOTES = (("modality", "Modality"), ("frame_of_reference", "FrameOfReferenceUID"))
_TAGS = ["SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID"]


def is_series(folder: Path) -> bool:
    """Whether all files of a folder are slices of one image series; such a folder counts as one file."""
    names = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if len(names) < 2 or not all(p.is_file() and p.suffix.lower() in (".dcm", "") for p in names):
        return False
    try:
        heads = [pydicom.dcmread(p, stop_before_pixels=True, specific_tags=_TAGS) for p in names]
        return len({h.SeriesInstanceUID for h in heads}) == 1 and str(heads[0].SOPClassUID) not in SEGMENTATIONS
    except (pydicom.errors.InvalidDicomError, AttributeError, OSError, ValueError):
        return False


def is_segmentation(path: str) -> bool:
    return str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS).SOPClassUID) in SEGMENTATIONS


def open_dicom(path: str) -> Opened:
    """A folder that holds one series, or a single multi-frame file; slides become sources, the rest volumes."""
    files = sorted(str(p) for p in Path(path).iterdir() if p.is_file()) if os.path.isdir(path) else [path]
    head = pydicom.dcmread(files[0], stop_before_pixels=True)
    if str(head.SOPClassUID) in SEGMENTATIONS:
        raise CaseFormatError(
            "this is a DICOM-SEG, an image was expected: let --labels match it and --images the series"
        )
    if str(head.SOPClassUID) == WHOLE_SLIDE:
        return _open_whole_slide(tuple(files), head)
    datasets = [pydicom.dcmread(file) for file in files]
    if len(files) == 1 and "NumberOfFrames" in head:
        volume = highdicom.Image.from_dataset(datasets[0], copy=False).get_volume(
            dtype=np.float64, apply_modality_transform=True
        )
    else:
        volume = highdicom.get_volume_from_series(datasets, dtype=np.float64)
    pixels = np.asarray(volume.array)
    planes = np.moveaxis(pixels, -1, 0) if pixels.ndim == 4 else pixels[None]
    whole = bool((planes == np.trunc(planes)).all())  # Hounsfield units are, after slope and intercept
    affine = np.asarray(volume.affine)
    return Opened(
        pixels=planes.astype(np.int32) if whole else planes,
        spacing_um=tuple(float(s) * 1e3 for s in volume.spacing),
        frame=Frame(origin=tuple(affine[:3, 3].tolist()), matrix=tuple(tuple(row) for row in affine[:3, :3].tolist())),
        notes={name: str(head.get(keyword, "")) for name, keyword in _NOTES},
    )


def read_segmentation(path: str, image: Opened, classes: Sequence[str]) -> NDArray[np.uint8]:
    """A DICOM-SEG on the image's grid: segments by their label, later classes on top where segments overlap.

    Raises:
        CaseFormatError: other patient space, a segment that is no class, a grid that is not the image's.
    """
    segmentation = highdicom.seg.segread(path)
    if image.frame is None:
        raise CaseFormatError(
            "a DICOM-SEG needs an image that says where it lies (DICOM, NIfTI, NRRD): this one does not"
        )
    mine, theirs = str(segmentation.get("FrameOfReferenceUID", "")), str(image.notes.get("frame_of_reference", ""))
    if theirs and mine and mine != theirs:
        raise CaseFormatError(
            f"the segmentation is in frame of reference {mine}, the image in {theirs}: they are of different scans"
        )
    meaning = _meanings(segmentation, classes)
    out = np.zeros(image.pixels.shape[1:], np.uint8)
    geometry = _geometry(image.frame, image.pixels.shape[1:])
    for number, value in sorted(meaning.items(), key=lambda item: item[1]):
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=False)
        try:
            on_image = volume.match_geometry(geometry, tol=1e-2)
        except (RuntimeError, ValueError) as error:
            raise CaseFormatError(
                f"the segmentation's grid ({volume.spatial_shape} voxels, "
                f"{tuple(round(s, 3) for s in volume.spacing)} mm) is not the "
                f"image's ({tuple(image.pixels.shape[1:])}, "
                f"{tuple(round(s / 1e3, 3) for s in image.spacing_um or ())} mm): resample it first"
            ) from error
        out[np.asarray(on_image.array)[..., 0] > 0.5] = value
    return out


def _meanings(segmentation: Any, classes: Sequence[str]) -> dict[int, int]:
    """Segment number -> class value, by label; a lone segment is the lone foreground class whatever its name."""
    labels = {
        n: str(segmentation.get_segment_description(n).segment_label) for n in segmentation.segment_numbers if n > 0
    }
    low = [name.lower() for name in classes]
    if len(classes) == 2 and len(labels) == 1:
        return {next(iter(labels)): 1}
    if strange := [label for label in labels.values() if label.lower() not in low]:
        raise CaseFormatError(
            f"segments {', '.join(strange[:6])} are no classes ({', '.join(classes)}): name them in --classes"
        )
    return {number: low.index(label.lower()) for number, label in labels.items()}


def _geometry(frame: Frame, shape: tuple[int, ...]) -> Any:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.array(frame.matrix), np.array(frame.origin)
    return highdicom.VolumeGeometry(affine, spatial_shape=shape, coordinate_system="PATIENT")


@dataclass(frozen=True, kw_only=True)
class WholeSlide:
    """Level 0 of a DICOM whole-slide series, (3, Y, X) uint8."""

    files: tuple[str, ...]
    shape: tuple[int, ...]
    identity: str
    dtype: str = "uint8"

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
        with reading(os.path.dirname(self.files[0])):
            region = _slide(self.files, os.getpid()).read_region((origin[1], origin[0]), 0, (size[1], size[0]))
        return np.ascontiguousarray(np.moveaxis(np.asarray(region.convert("RGB")), -1, 0))


@lru_cache(maxsize=4)
def _slide(files: tuple[str, ...], process: int) -> Any:
    return wsidicom.WsiDicom.open(list(files))


def _open_whole_slide(files: tuple[str, ...], head: Any) -> Opened:
    slide = _slide(files, os.getpid())
    spacing = (slide.mpp.height, slide.mpp.width)
    identity = " ".join(file_identity(file) for file in files)
    source = WholeSlide(files=files, shape=(3, slide.size.height, slide.size.width), identity=identity)
    powers = [
        float(path.ObjectiveLensPower) for path in head.get("OpticalPathSequence", []) if "ObjectiveLensPower" in path
    ]
    magnification = {"objective power": f"{powers[0]:g}"} if powers else {}
    return Opened(pixels=source, spacing_um=tuple(float(s) for s in spacing), notes={"modality": "SM"} | magnification)
