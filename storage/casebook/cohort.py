"""A cohort: a Parquet table, one row per whole case, small enough to be read at once for a million cases.

Splits are by group (patient), never by case. URLs inside the table are relative to its folder, so a cohort moves as
one.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from casebook.case import Case
from casebook.errors import CaseFormatError, CaseNotFoundError
from casebook.location import absolute_from, canonical, check_name, join, parent, read_bytes, relative_to, write_bytes
from casebook.opening import open_case
from casebook.source import STORED_DTYPES
from casebook.split import SPLITS
from casebook.statistics import channel_moments, count_blocks

SCHEMA = 1
TABLE = "cohort.parquet"


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """One case of a cohort: enough to plan an epoch without opening it.

    shape, chunk_px: level-0 pixels, spatial. mean, std: per channel, stored units.
    block_px, foreground, disagreement: see statistics.BlockCounts; foreground[k][b] counts class k in cell b (C order).
    """

    case: str
    url: str
    split: str
    group: str
    axes: tuple[str, ...]
    channels: int
    dtype: str
    shape: tuple[int, ...]
    spacing_um: tuple[float, ...]
    chunk_px: tuple[int, ...]
    annotators: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    block_px: tuple[int, ...]
    foreground: tuple[tuple[int, ...], ...]
    disagreement: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A set of cases with splits.

    annotators: everyone who drew somewhere, in a fixed order. stable_annotators: the same id is the same person in
    every case.
    reference: id of the reference layer, if the cases have one; for reports, never for learning.
    """

    url: str
    name: str
    classes: tuple[str, ...]
    annotators: tuple[str, ...]
    stable_annotators: bool
    reference: str | None
    licence: str | None
    cases: tuple[CaseRow, ...]

    def split(self, name: str) -> "Cohort":
        """The same cohort with the cases of one split only."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r}: one of {', '.join(SPLITS)} was expected")
        return replace(self, cases=tuple(row for row in self.cases if row.split == name))

    def learning_from(self, layers: Sequence[str]) -> "Cohort":
        """The same cases with other layers of theirs, fused ones as a rule, in the place of the annotators'; without a reference.

        Opens every case. Rows keep their statistics, which count what the annotators drew: where to look for something stays the same.
        A layer that is nobody's is made in one way everywhere, so that ids stay stable without the annotators.

        Raises:
            ValueError: when there is no layer, or a case of train or validation lacks one; the message lists those that it has.
        """
        if not layers:
            raise ValueError("no layer to learn from: name one")
        rows = []
        for row in self.cases:
            there = [layer.id for layer in open_case(row.url).layers]
            absent = [layer for layer in layers if layer not in there]
            if absent and row.split != "test":
                raise ValueError(
                    f"case {row.case!r} has no layer {', '.join(absent)}, it has {', '.join(there) or 'none'}: "
                    "fuse the cohort first, with jobs/fuse.py, or name another layer"
                )
            rows.append(replace(row, annotators=tuple(layer for layer in layers if layer in there)))
        stable = self.stable_annotators or not set(layers) & set(self.annotators)
        return replace(self, annotators=tuple(layers), stable_annotators=stable, reference=None, cases=tuple(rows))


_COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("case", "url", "split", "group", "dtype")]
    + [(name, pa.list_(pa.string())) for name in ("axes", "annotators")]
    + [(name, pa.list_(pa.int64())) for name in ("shape", "chunk_px", "block_px", "disagreement")]
    + [(name, pa.list_(pa.float64())) for name in ("spacing_um", "mean", "std")]
    + [("channels", pa.int64()), ("foreground", pa.list_(pa.list_(pa.int64())))]
)


def describe_case(case: Case, *, split: str, group: str) -> CaseRow:
    """The row of a whole case: reads it once for its statistics."""
    if case.dtype not in STORED_DTYPES:
        raise CaseFormatError(
            f"case {case.url} holds {case.dtype}; a cohort takes {', '.join(STORED_DTYPES)}: ingest it with --floats"
        )
    mean, std = channel_moments(case)
    blocks = count_blocks(case)
    return CaseRow(
        case=case.name,
        url=case.url,
        split=split,
        group=group,
        axes=case.axes,
        channels=case.channels,
        dtype=case.dtype,
        shape=case.shapes[0],
        spacing_um=case.spacing_um[0],
        chunk_px=case.chunk_px,
        annotators=case.annotators,
        mean=mean,
        std=std,
        block_px=blocks.block_px,
        foreground=blocks.foreground,
        disagreement=blocks.disagreement,
    )


def write_cohort(
    url: str | os.PathLike[str],
    rows: Sequence[CaseRow],
    *,
    name: str,
    classes: tuple[str, ...],
    stable_annotators: bool = True,
    reference: str | None = None,
    licence: str | None = None,
    annotators: tuple[str, ...] | None = None,
) -> Cohort:
    """Writes the table `cohort.parquet` into the folder `url`, whole or not at all.

    Raises:
        CaseFormatError: two cases of one name, a group in two splits, an unknown split.
    """
    place = table_url(url)
    check_rows(rows)
    seen = tuple(dict.fromkeys(a for row in rows for a in row.annotators))
    everyone = annotators if annotators is not None else tuple(sorted(seen))
    if missing := set(seen) - set(everyone):
        raise CaseFormatError(
            f"annotators {sorted(missing)} drew in these cases but are not in the list {everyone}: add them"
        )
    cohort = Cohort(
        url=parent(place),
        name=name,
        classes=tuple(classes),
        annotators=everyone,
        stable_annotators=stable_annotators,
        reference=reference,
        licence=licence,
        cases=tuple(rows),
    )
    write_bytes(place, encode(cohort))
    return cohort


def table_url(url: str | os.PathLike[str]) -> str:
    """A cohort is named by its folder or by the table in it."""
    place = canonical(url)
    return place if place.endswith(".parquet") else join(place, TABLE)


def check_rows(rows: Sequence[CaseRow]) -> None:
    """Names are unique, splits known, a group in one split only."""
    names: set[str] = set()
    splits: dict[str, str] = {}
    for row in rows:
        check_name(row.case, "case")
        if row.case in names:
            raise CaseFormatError(f"two cases are named {row.case!r}: names are unique in a cohort")
        names.add(row.case)
        if row.split not in SPLITS:
            raise CaseFormatError(f"case {row.case!r} has split {row.split!r}: one of {', '.join(SPLITS)} was expected")
        if splits.setdefault(row.group, row.split) != row.split:
            raise CaseFormatError(
                f"group {row.group!r} is in splits {splits[row.group]!r} and {row.split!r}: a patient belongs to one"
            )


def encode(cohort: Cohort) -> bytes:
    """The bytes of the table."""
    rows = [dataclasses.asdict(row) | {"url": relative_to(row.url, cohort.url)} for row in cohort.cases]
    about = {
        "schema": SCHEMA,
        "name": cohort.name,
        "classes": cohort.classes,
        "annotators": cohort.annotators,
        "stable_annotators": cohort.stable_annotators,
        "reference": cohort.reference,
        "licence": cohort.licence,
    }
    table = pa.Table.from_pylist(rows, schema=_COLUMNS.with_metadata({"casebook": json.dumps(about)}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def open_cohort(url: str | os.PathLike[str]) -> Cohort:
    """The cohort in a folder (or the table itself).

    Raises:
        CaseNotFoundError: no cohort lies there. CaseFormatError: the table is damaged or from a newer casebook.
    """
    place = table_url(url)
    try:
        data = read_bytes(place)
    except CaseNotFoundError as error:
        raise CaseNotFoundError(
            f"no cohort lies at {place}: check the spelling, or make one with `python jobs/ingest.py --help`"
        ) from error
    return decode(data, place)


def decode(data: bytes, place: str) -> Cohort:
    """The inverse of `encode`, for a table that lies at `place`."""
    try:
        # no thread of Arrow may hold a Python object when the interpreter ends: it would abort the process (pyarrow 26)
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
        about = json.loads((table.schema.metadata or {})[b"casebook"])
        if about["schema"] != SCHEMA:
            raise CaseFormatError(f"{place} has schema {about['schema']}, this casebook reads {SCHEMA}: update rayters")
        folder = parent(place)
        rows = tuple(_row(record, folder) for record in table.select(_COLUMNS.names).to_pylist())
        return Cohort(
            url=folder,
            name=about["name"],
            classes=tuple(about["classes"]),
            annotators=tuple(about["annotators"]),
            stable_annotators=bool(about["stable_annotators"]),
            reference=about["reference"],
            licence=about["licence"],
            cases=rows,
        )
    except CaseFormatError:
        raise
    except (pa.ArrowException, KeyError, ValueError, TypeError, OSError) as error:
        raise CaseFormatError(
            f"{place} is not a cohort table ({type(error).__name__}): restore it, or ingest again"
        ) from error


def _row(record: dict[str, Any], folder: str) -> CaseRow:
    values = {key: _tuples(value) for key, value in record.items()}
    return CaseRow(**(values | {"url": absolute_from(str(record["url"]), folder)}))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
