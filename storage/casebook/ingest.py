"""A folder of images and masks becomes a cohort: match, check, write, list; what fails is told and leaves the rest
alone.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from casebook.case import Case, Layer
from casebook.cohort import CaseRow, Cohort, describe_case, write_cohort
from casebook.errors import CasebookError, CaseFormatError, CaseNotFoundError
from casebook.formats import Opened, check_same_place, open_image
from casebook.intensity import to_stored
from casebook.layout import Drawing, Found, FoundCase, match_files
from casebook.location import canonical, join, read_json
from casebook.masks import flat_mask, parse_values, to_classes
from casebook.one_pass import Storage
from casebook.opening import open_case
from casebook.source import ImageSource, LabelSource
from casebook.split import split_by_group
from casebook.write import write_case


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """What to take, how to read it, and where to put it."""

    source: str
    """Folder with the images and masks."""
    to: str
    """URL of the cohort: a folder, s3://bucket/name ..."""
    images: str | None = None
    """Pattern of the images, relative to the folder, with {case} and perhaps {split}. Without it the layout is
    guessed.
    """
    labels: str | None = None
    """Pattern of the masks, with {case} and {annotator}, perhaps {class} (one binary file per class)."""
    skip: tuple[str, ...] = ()
    """Annotators to leave out, as patterns: 'crowd_*'."""
    reference: str | None = None
    """The annotator whose masks are the reference: used in reports, never for learning."""
    classes: tuple[str, ...] = ("background", "foreground")
    """Names of the values 0, 1, 2 ..."""
    values: tuple[str, ...] = ()
    """What each value in the mask files means: '0=background' '128=tumour' '255=IGNORE'. Without it the values are
    the classes.
    """
    threshold: float | None = None
    """For grey masks of two classes: above it is foreground."""
    empty: Literal["background", "ignore"] = "background"
    """What a mask without any foreground means: 'background', nothing is there; 'ignore', this annotator gave no
    opinion.
    """
    identities: Literal["stable", "anonymous"] = "stable"
    """'anonymous': the same annotator name is not the same person in every case (LIDC's readers)."""
    group: str | None = None
    """Regular expression on the case's name; its first group (or all of it) names the patient: 'LIDC-IDRI-\\d+'.
    Without: every case its own.
    """
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Fractions of train, validation and test, by group. A {split} in --images overrides it."""
    seed: int = 0
    """Of the split."""
    floats: tuple[float, float] | None = None
    """Range of float images that is mapped to 16 bits. Without: 0..1, 0..255 or 0..65535 if it holds them, else
    the image's own.
    """
    spacing_um: tuple[float, ...] | None = None
    """Pixel size in micrometres, (y x) or (z y x); overrides the files. Files that do not say get 1."""
    name: str | None = None
    """Of the cohort; the folder's name without it."""
    licence: str | None = None
    """Of the data, kept in the cohort."""
    codec: Literal["zstd", "lz4"] = "zstd"
    """zstd is small, lz4 fast."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """One line of the report. severity: 'failed' (something was not ingested) or 'note'."""

    severity: str
    file: str
    seen: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an ingest."""

    cohort: Cohort | None
    written: int
    skipped: int
    notes: tuple[Note, ...]
    patterns: tuple[str, str]

    @property
    def failures(self) -> tuple[Note, ...]:
        return tuple(note for note in self.notes if note.severity == "failed")


def ingest(
    config: Ingest, *, scheduler: Any = None, progress: Callable[[int, int, str], None] | None = None
) -> Outcome:
    """Writes every case of the folder and the cohort's table; cases that lie there whole, from the same files, are
    skipped.

    progress: called with (cases done, cases in all, name of the next).

    Raises:
        CasebookError: when nothing at all can be done (no folder, no match, wrong options).
    """
    found = find(config)
    parse_values(config.values, config.classes)
    notes = [
        Note(severity="note", file=path, seen="belongs to no case", remedy="name it in --labels, or leave it")
        for path in found.unused
    ]
    splits = _splits(config, found)
    rows: list[CaseRow] = []
    written = skipped = 0
    for number, case in enumerate(found.cases):
        if progress:
            progress(number, len(found.cases), case.case)
        try:
            stored, fresh, said = ingest_case(config, case, scheduler=scheduler)
            notes += said
            rows.append(describe_case(stored, split=splits[case.case], group=group_of(config, case.case)))
            written, skipped = written + fresh, skipped + (not fresh)
        except CasebookError as error:
            notes.append(_failure(case.image, error, "this case was left out"))
    if progress:
        progress(len(found.cases), len(found.cases), "")
    cohort = _list(config, rows) if rows else None
    return Outcome(cohort=cohort, written=written, skipped=skipped, notes=tuple(notes), patterns=found.patterns)


def find(config: Ingest) -> Found:
    """The cases of the folder."""
    if not os.path.isdir(config.source):
        raise CaseNotFoundError(f"no folder lies at {config.source}: check the spelling")
    found = match_files(list(_files(config.source)), config.images, config.labels, config.skip)
    if config.group is not None:
        for case in found.cases:
            group_of(config, case.case)
    return found


def _files(folder: str) -> Iterator[str]:
    """Relative paths of all files; a .zarr folder counts as one file, hidden ones do not count."""
    for here, folders, names in os.walk(folder):
        relative = os.path.relpath(here, folder).replace(os.sep, "/")
        start = "" if relative == "." else relative + "/"
        yield from (start + name for name in sorted(names) if not name.startswith("."))
        yield from (start + name for name in sorted(folders) if name.endswith(".zarr"))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not name.endswith(".zarr"))


def group_of(config: Ingest, case: str) -> str:
    """The patient of a case."""
    if config.group is None:
        return case
    try:
        match = re.search(config.group, case)
    except re.error as error:
        raise CaseFormatError(f"--group {config.group!r} is not a regular expression: {error}") from error
    if match is None:
        raise CaseFormatError(f"--group {config.group!r} finds nothing in case {case!r}: every case needs a patient")
    return match[1] if match.groups() and match[1] else match[0]


def _splits(config: Ingest, found: Found) -> dict[str, str]:
    """The split of each case."""
    groups = {case.case: group_of(config, case.case) for case in found.cases}
    fixed = {groups[case.case]: case.split for case in found.cases if case.split is not None}
    by_group = split_by_group(list(groups.values()), config.split, seed=config.seed, fixed=fixed)
    return {case: by_group[group] for case, group in groups.items()}


def ingest_case(config: Ingest, found: FoundCase, *, scheduler: Any = None) -> tuple[Case, bool, list[Note]]:
    """The whole case, whether it was written now, and what there is to say about it."""
    url = join(canonical(config.to), "cases", found.case + ".ome.zarr")
    fingerprint = _fingerprint(config, found)
    if (stored := _already(url, fingerprint)) is not None:
        return stored, False, []
    image = _open_or_explain(config, found.image)
    pixels, slope, intercept = _stored_pixels(image.pixels, config)
    layers, notes = _read_layers(config, found, image)
    failed = any(note.severity == "failed" for note in notes)
    spacing = _spacing(config, image)
    case = write_case(
        url, pixels, spacing_um=spacing, classes=config.classes, layers=layers, name=found.case, existing="replace",
        intensity=(slope, intercept), storage=Storage(codec=config.codec), scheduler=scheduler,
        provenance={"files": [found.image, *(d.path for d in found.drawings)], "notes": dict(image.notes),
                    "ingest": None if failed else fingerprint, "left_out": [asdict(note) for note in notes]},
    )  # fmt: skip
    return case, True, notes


def _open_or_explain(config: Ingest, path: str) -> Opened:
    return open_image(str(Path(config.source) / path))


def _stored_pixels(pixels: NDArray[Any] | ImageSource, config: Ingest) -> tuple[Any, float, float]:
    return to_stored(pixels, config.floats) if isinstance(pixels, np.ndarray) else (pixels, 1.0, 0.0)


def _spacing(config: Ingest, image: Opened) -> tuple[float, ...]:
    axes = len(image.pixels.shape) - 1
    spacing = config.spacing_um or image.spacing_um or (1.0,) * axes
    if len(spacing) != axes:
        raise CaseFormatError(
            f"--spacing-um {spacing} for an image of {axes} axes: give one number per axis, {'z y x'[-2 * axes + 1 :]}"
        )
    return spacing


def _read_layers(config: Ingest, found: FoundCase, image: Opened) -> tuple[dict[Layer, Any], list[Note]]:
    """Every annotator's layer that can be read, and a note for every one that cannot."""
    layers: dict[Layer, Any] = {}
    notes: list[Note] = []
    for annotator in dict.fromkeys(drawing.annotator for drawing in found.drawings):
        files = [drawing for drawing in found.drawings if drawing.annotator == annotator]
        try:
            labels = _read_drawing(config, files, image)
        except CasebookError as error:
            notes.append(_failure(files[0].path, error, f"{annotator!r} was left out of this case"))
            continue
        if isinstance(labels, np.ndarray) and not labels.any():
            notes.append(_empty_note(config, files[0].path))
            if config.empty == "ignore":
                continue
        role = "reference" if annotator == config.reference else "annotator"
        layers[Layer(id=annotator, role=role, drawn_by=annotator if config.identities == "stable" else None)] = labels
    return layers, notes


def _empty_note(config: Ingest, path: str) -> Note:
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
    if files[0].label_class is None:
        opened = open_image(str(Path(config.source) / files[0].path))
        check_same_place(image, opened)
        values = parse_values(config.values, config.classes)
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


def _failure(path: str, error: CasebookError, effect: str) -> Note:
    seen, separator, remedy = str(error).rpartition(": ")
    return Note(
        severity="failed",
        file=path,
        seen=f"{seen if separator else error} ({effect})",
        remedy=remedy if separator else "",
    )


def _fingerprint(config: Ingest, found: FoundCase) -> str:
    """Changes when a file or an option that shapes the case changes."""
    options = {
        key: value
        for key, value in asdict(config).items()
        if key not in ("source", "to", "name", "licence", "split", "seed", "group")
    }
    files = []
    for path in [found.image, *(drawing.path for drawing in found.drawings)]:
        state = os.stat(Path(config.source) / path)
        files.append((path, state.st_size, int(state.st_mtime)))
    return hashlib.sha256(json.dumps([options, files], sort_keys=True).encode()).hexdigest()[:32]


def _already(url: str, fingerprint: str) -> Case | None:
    """The case, when it lies there whole and from the same files.

    Raises:
        CaseFormatError: another case lies there that this ingest did not write, or that got layers since.
    """
    try:
        ours = read_json(join(url, "zarr.json"))["attributes"]["casebook"]["provenance"]
        case = open_case(url)
    except (CaseNotFoundError, KeyError, TypeError):
        return None
    if ours.get("ingest") == fingerprint:
        return case
    if "ingest" not in ours or any(layer.role in ("fusion", "prediction") for layer in case.layers):
        raise CaseFormatError(
            f"{url} holds a case with work that the folder does not have: ingest into another --to, or remove it"
        )
    return None


def _list(config: Ingest, rows: Sequence[CaseRow]) -> Cohort:
    return write_cohort(
        config.to, rows, name=config.name or Path(config.source).resolve().name, classes=config.classes,
        stable_annotators=config.identities == "stable", reference=_reference(config, rows), licence=config.licence,
    )  # fmt: skip


def _reference(config: Ingest, rows: Sequence[CaseRow]) -> str | None:
    return config.reference if config.reference is not None and rows else None


def preview(config: Ingest) -> Ingest:
    """The same with the guessed patterns filled in."""
    found = find(config)
    return replace(config, images=found.patterns[0], labels=found.patterns[1])
