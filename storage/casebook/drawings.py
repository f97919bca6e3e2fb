"""Everything that was drawn on one image: which files can be read as layers, and a note for each that cannot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.case import Case, Layer
from casebook.errors import CasebookError, CaseFormatError
from casebook.formats import Opened, check_same_place, open_image, reading
from casebook.formats.geojson import open_polygons
from casebook.formats.zarr_image import CaseLabels
from casebook.ingest_options import Ingest, Note
from casebook.layout import Drawing, FoundCase, suffix
from casebook.masks import MappedLabels, flat_mask, parse_values, to_classes
from casebook.source import LabelSource


def read_layers(config: Ingest, found: FoundCase, image: Opened) -> tuple[dict[Layer, Any], list[Note]]:
    """Every annotator's layer that can be read, and a note for every one that cannot."""
    layers: dict[Layer, Any] = {}
    notes: list[Note] = []
    if isinstance(inner := image.notes.get("case"), Case):
        layers |= {layer: CaseLabels(case=inner, layer=layer.id) for layer in inner.layers}
    for annotator in dict.fromkeys(drawing.annotator for drawing in found.drawings):
        files = [drawing for drawing in found.drawings if drawing.annotator == annotator]
        try:
            labels = _read_drawing(config, files, image)
        except CasebookError as error:
            notes.append(failure_note(files[0].path, error, f"{annotator!r} was left out of this case"))
            continue
        if isinstance(labels, np.ndarray) and not labels.any():
            notes.append(empty_note(config, files[0].path))
            if config.empty == "ignore":
                continue
        role = "reference" if annotator == config.reference else "annotator"
        layers[Layer(id=annotator, role=role, drawn_by=annotator if config.identities == "stable" else None)] = labels
    return layers, notes


def empty_note(config: Ingest, path: str) -> Note:
    if config.empty == "ignore":
        return Note(
            severity="note",
            file=path,
            seen="empty mask, taken as no opinion",
            remedy="--empty background if it means nothing is there",
        )
    return Note(
        severity="note",
        file=path,
        seen="empty mask, taken as background",
        remedy="--empty ignore if it means no opinion",
    )


def _read_drawing(config: Ingest, files: Sequence[Drawing], image: Opened) -> NDArray[np.uint8] | LabelSource:
    """One annotator's map of one case, from one file or from one binary file per class."""
    path = str(Path(config.source) / files[0].path)
    if suffix(path) == ".geojson":
        with reading():
            return open_polygons(path, image.pixels.shape[1:], config.classes)
    if suffix(path) == ".seg" or (suffix(path) == ".dcm" and _is_segmentation(path)):
        with reading():
            return read_segmentation(path, image, config.classes)
    if files[0].label_class is None:
        opened = open_image(path)
        check_same_place(image, opened)
        values = parse_values(config.values, config.classes)
        if not isinstance(opened.pixels, np.ndarray):
            if values is None:
                raise CaseFormatError(
                    f"the mask has {opened.pixels.shape} values, too many to look at first: name them with --values"
                )
            return MappedLabels(file=opened.pixels, values=tuple(values.items()))
        return to_classes(
            flat_mask(np.asarray(opened.pixels)), config.classes, values=values, threshold=config.threshold
        )
    merged = np.zeros(image.pixels.shape[1:], np.uint8)
    by_class = {drawing.label_class: drawing for drawing in files}
    if strange := sorted(str(c) for c in by_class.keys() - set(config.classes)):
        raise CaseFormatError(
            f"there are masks of {', '.join(strange[:5])}, the classes are {', '.join(config.classes)}: name them "
            "in --classes"
        )
    for value, name in enumerate(config.classes):  # later classes lie on top, as the cord on the canal
        if name in by_class:
            opened = open_image(str(Path(config.source) / by_class[name].path))
            check_same_place(image, opened)
            merged[
                to_classes(flat_mask(np.asarray(opened.pixels)), ("background", name), threshold=config.threshold) == 1
            ] = value
    return merged


def _is_segmentation(path: str) -> bool:
    from casebook.formats.dicom import is_segmentation

    with reading():
        return is_segmentation(path)


def read_segmentation(path: str, image: Opened, classes: tuple[str, ...]) -> NDArray[np.uint8]:
    """A DICOM-SEG; the DICOM libraries are an optional extra, so they are imported here."""
    from casebook.formats import dicom

    return dicom.read_segmentation(path, image, classes)


def failure_note(path: str, error: CasebookError, effect: str) -> Note:
    seen, separator, remedy = str(error).rpartition(": ")
    return Note(
        severity="failed",
        file=path,
        seen=f"{seen if separator else error} ({effect})",
        remedy=remedy if separator else "",
    )
