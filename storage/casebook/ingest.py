"""A folder of images and masks becomes a cohort: match, check, write, list; what fails is told and leaves the rest
alone.

Cases are written side by side in threads: what they wait for is a disk, a decoder or a store, all of which let other
threads run. One who fails or is killed leaves the others whole, and the next run goes on with what is missing.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.case import Case
from casebook.cohort import CaseRow, Cohort, describe_case
from casebook.drawings import failure_note, read_layers
from casebook.edit import put_cases
from casebook.errors import CasebookError, CaseFormatError, CaseNotFoundError
from casebook.folder import list_files
from casebook.formats import Opened, open_image
from casebook.ingest_options import Ingest, Note, Outcome
from casebook.intensity import to_stored
from casebook.layout import Found, FoundCase, match_files
from casebook.location import canonical, join, read_json
from casebook.masks import parse_values
from casebook.one_pass import Progress as BlockProgress
from casebook.one_pass import Scheduler, Storage
from casebook.opening import open_case
from casebook.source import ImageSource
from casebook.split import split_by_group
from casebook.write import write_case

__all__ = ["Ingest", "Note", "Outcome", "ingest"]

Progress = Callable[[float, int, str], None]
MOST_SIDE_BY_SIDE = 4  # a volume is held whole while it is written


@dataclass(frozen=True, kw_only=True)
class _Done:
    """What became of one case; no row when it was left out."""

    row: CaseRow | None
    fresh: bool
    notes: tuple[Note, ...]


def ingest(config: Ingest, *, scheduler: Scheduler = None, progress: Progress | None = None) -> Outcome:
    """Writes every case of the folder and the cohort's table; cases that lie there whole, from the same files, are
    skipped.

    scheduler: see `write_case`. progress: called with (cases done, cases in all, name of the one that moved); half a
    slide is half a case.

    Raises:
        CasebookError: when nothing at all can be done (no folder, no match, wrong options).
    """
    found = find(config)
    parse_values(config.values, config.classes)
    notes = [
        Note(severity="note", file=path, seen="belongs to no case", remedy="name it in --labels, or leave it")
        for path in found.unused
    ]
    done = _all(config, found, scheduler, progress or (lambda *_: None))
    rows = [case.row for case in done if case.row]
    return Outcome(
        cohort=_list(config, rows) if rows else None,
        written=sum(case.fresh for case in done if case.row),
        skipped=sum(not case.fresh for case in done if case.row),
        notes=(*notes, *(note for case in done for note in case.notes)),
        patterns=found.patterns,
    )


def _all(config: Ingest, found: Found, scheduler: Scheduler, progress: Progress) -> list[_Done]:
    """Every case, several at a time; in the folder's order, whichever is done first."""
    splits = _splits(config, found)
    meter = _Meter(cases=len(found.cases), progress=progress)
    pool = ThreadPoolExecutor(_workers(config), thread_name_prefix="casebook-ingest")
    try:
        futures = [pool.submit(_one, config, case, splits[case.case], scheduler, meter) for case in found.cases]
        for future in as_completed(futures):
            future.result()
        return [future.result() for future in futures]
    except BaseException:  # Ctrl-C, or what is no casebook error: slides in work end with the block they are at
        meter.stopped = True
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _workers(config: Ingest) -> int:
    if config.side_by_side is None:
        return min(MOST_SIDE_BY_SIDE, os.cpu_count() or 1)
    if config.side_by_side < 1:
        raise CaseFormatError(f"--side-by-side {config.side_by_side}: at least one case at a time was expected")
    return config.side_by_side


@dataclass(kw_only=True, eq=False)
class _Meter:
    """How far all cases are that are in work at once."""

    cases: int
    progress: Progress
    stopped: bool = False
    done: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def move(self, case: str, part: float) -> None:
        """Raises CancelledError in the case that calls it once all are to stop."""
        if self.stopped:
            raise CancelledError
        with self.lock:
            self.done += part - self.parts.get(case, 0.0)
            self.parts[case] = part
            self.progress(round(self.done, 2), self.cases, case)


def _one(config: Ingest, case: FoundCase, split: str, scheduler: Scheduler, meter: _Meter) -> _Done:
    written = lambda done, total: meter.move(case.case, 0.99 * done / total)
    try:
        stored, fresh, notes = ingest_case(config, case, scheduler=scheduler, progress=written)
        row = describe_case(stored, split=split, group=group_of(config, case.case))
        return _Done(row=row, fresh=fresh, notes=tuple(notes))
    except CasebookError as error:
        return _Done(row=None, fresh=False, notes=(failure_note(case.image, error, "this case was left out"),))
    finally:
        meter.move(case.case, 1)


def find(config: Ingest) -> Found:
    """The cases of the folder."""
    found = match_files(list_files(config.source), config.images, config.labels, config.skip)
    if config.group is not None:
        for case in found.cases:
            group_of(config, case.case)
    return found


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


def ingest_case(
    config: Ingest, found: FoundCase, *, scheduler: Scheduler = None, progress: BlockProgress | None = None
) -> tuple[Case, bool, list[Note]]:
    """The whole case, whether it was written now, and what there is to say about it."""
    url = join(canonical(config.to), "cases", found.case + ".ome.zarr")
    fingerprint = _fingerprint(config, found)
    if (stored := _already(url, fingerprint)) is not None:
        return stored, False, []
    image = _open_or_explain(config, found.image)
    pixels, slope, intercept = _stored_pixels(image.pixels, config)
    layers, notes = read_layers(config, found, image)
    notes += [_departure_note(found.image, text) for text in image.notes.get("departures", ())]
    failed = any(note.severity == "failed" for note in notes)
    spacing = _spacing(config, image)
    case = write_case(
        url, pixels, spacing_um=spacing, classes=config.classes, layers=layers, name=found.case, existing="replace",
        intensity=(slope, intercept), storage=Storage(codec=config.codec), scheduler=scheduler, progress=progress,
        provenance={"files": [found.image, *(d.path for d in found.drawings)], "notes": _words(image),
                    "ingest": None if failed else fingerprint, "left_out": [asdict(note) for note in notes]},
    )  # fmt: skip
    return case, True, notes


def _words(image: Opened) -> dict[str, str]:
    """The notes that are words, and so fit into a document."""
    return {key: value for key, value in image.notes.items() if isinstance(value, str)}


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


def _departure_note(path: str, text: str) -> Note:
    remedy = "it was read all the same; other tools may refuse it"
    return Note(severity="note", file=path, seen=f"not valid OME-Zarr: {text}", remedy=remedy)


def _fingerprint(config: Ingest, found: FoundCase) -> str:
    """Changes when a file or an option that shapes the case changes."""
    options = {
        key: value
        for key, value in asdict(config).items()
        if key not in ("source", "to", "name", "licence", "split", "seed", "group", "side_by_side")
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
    """Puts the rows into the cohort, beside what others may have put there."""
    empty = Cohort(
        url=canonical(config.to),
        name=config.name or Path(config.source).resolve().name,
        classes=config.classes,
        annotators=(),
        stable_annotators=config.identities == "stable",
        reference=config.reference,
        licence=config.licence,
        cases=(),
    )
    return put_cases(config.to, rows, empty=empty)
