"""A label volume as DICOM-SEG that refers to the series it was drawn on; highdicom writes it.

Codes are SNOMED CT's 'Tissue' (85756007): a cohort names its classes in words, and the segment's label keeps the word.
"""

from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from casebook.errors import CaseFormatError
from casebook.formats.dicom import WHOLE_SLIDE
from casebook.labels import IGNORE


def write_dicom_seg(path: str, labels: NDArray[np.uint8], classes: Sequence[str], series: str, *, made_by: str) -> None:
    """labels: (Z, Y, X) on the grid of the series, slices in the order in which casebook.formats.dicom reads them.

    series: folder of the slices. made_by: name of the model or person. IGNORE is in no segment.

    Raises:
        CaseFormatError: the series is a slide, or has another grid than the labels, or nothing was drawn.
    """
    files = sorted(p for p in Path(series).iterdir() if p.is_file() and not p.name.startswith("."))
    images = [_repaired(pydicom.dcmread(file)) for file in files]
    if str(images[0].SOPClassUID) == WHOLE_SLIDE:
        raise CaseFormatError(f"{series} is a whole slide: export its layers as GeoJSON, which viewers of slides open")
    volume = highdicom.get_volume_from_series(images)
    if tuple(volume.spatial_shape) != labels.shape:
        raise CaseFormatError(
            f"the labels are {labels.shape} voxels, the series in {series} {tuple(volume.spatial_shape)}: is it another one?"
        )
    values = [k for k in range(1, len(classes)) if (labels == k).any()]
    if not values:
        raise CaseFormatError("nothing was drawn: a DICOM-SEG has at least one segment; this case has none to export")
    masks = np.stack([labels == k for k in values], axis=-1).astype(np.uint8)
    assert IGNORE not in values
    segmentation = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=highdicom.Volume(
            masks, volume.affine, "PATIENT", channels={"SegmentNumber": range(1, len(values) + 1)}
        ),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(n, classes[k], made_by) for n, k in enumerate(values, start=1)],
        series_instance_uid=generate_uid(),
        series_number=900,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Rayters",
        manufacturer_model_name=made_by[:64],
        software_versions="rayters",
        device_serial_number="0",
        series_description=made_by[:64],
    )
    segmentation.save_as(path)


def _repaired(image: pydicom.Dataset) -> pydicom.Dataset:
    """An empty character set, which scanners do write, means the default one; highdicom wants it named."""
    if "SpecificCharacterSet" in image and not image.SpecificCharacterSet:
        image.SpecificCharacterSet = "ISO_IR 100"
    return image


def _segment(number: int, name: str, made_by: str) -> highdicom.seg.SegmentDescription:
    tissue = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=tissue,
        segmented_property_type=tissue,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=made_by[:64], version="1", family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")
        ),
    )
