"""Changing a cohort: add cases, take a part, join two. Two writers at once both get their cases in."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from casebook.cohort import CaseRow, Cohort, check_rows, decode, encode, open_cohort, table_url
from casebook.conditional import create_bytes, replace_bytes
from casebook.errors import CaseFormatError
from casebook.location import parent


def change_cohort(url: str | os.PathLike[str], change: Callable[[Cohort | None], Cohort]) -> Cohort:
    """Replaces the table by `change(the cohort now)`; computed again when another writer was faster.

    Raises:
        ConflictError: others were faster again and again.
    """
    place = table_url(url)
    result: list[Cohort] = []

    def on_bytes(old: bytes | None) -> bytes:
        cohort = replace(change(decode(old, place) if old is not None else None), url=parent(place))
        check_rows(cohort.cases)
        result[:] = [cohort]
        return encode(cohort)

    replace_bytes(place, on_bytes)
    return result[0]


def put_cases(url: str | os.PathLike[str], rows: Sequence[CaseRow], *, empty: Cohort) -> Cohort:
    """Adds rows, or replaces those of the same name; `empty` describes the cohort when there is none yet.

    A group that is in the cohort already keeps its split, whatever the new rows say.
    """

    def change(old: Cohort | None) -> Cohort:
        base = old or replace(empty, cases=())
        if base.classes != empty.classes:
            raise CaseFormatError(
                f"the cohort at {url} has classes {base.classes}, the new cases {empty.classes}: use another cohort"
            )
        if base.stable_annotators and not empty.stable_annotators:
            base = replace(base, stable_annotators=False)
        mine = {row.case: row for row in rows}
        kept = tuple(row for row in base.cases if row.case not in mine)
        settled = {row.group: row.split for row in kept}
        added = tuple(replace(row, split=settled.get(row.group, row.split)) for row in mine.values())
        return _with_annotators(replace(base, cases=tuple(sorted((*kept, *added), key=lambda row: row.case))))

    return change_cohort(url, change)


def remove_cases(url: str | os.PathLike[str], names: Sequence[str]) -> Cohort:
    """Unlists cases; their pixels stay.

    Raises:
        CaseFormatError: one of them is not in the cohort.
    """

    def change(old: Cohort | None) -> Cohort:
        cohort = old or open_cohort(url)
        if missing := set(names) - {row.case for row in cohort.cases}:
            raise CaseFormatError(
                f"the cohort at {url} has no case {', '.join(sorted(missing))}: look with jobs/inspect_cohort.py"
            )
        return replace(cohort, cases=tuple(row for row in cohort.cases if row.case not in names))

    return change_cohort(url, change)


def subset(cohort: Cohort, keep: Callable[[CaseRow], bool], *, annotators: Sequence[str] | None = None) -> Cohort:
    """The cases that `keep` accepts, and perhaps only some of the annotators; write it with `save_as`."""
    rows = [row for row in cohort.cases if keep(row)]
    if annotators is None:
        return _with_annotators(replace(cohort, cases=tuple(rows)))
    if missing := set(annotators) - set(cohort.annotators):
        raise CaseFormatError(f"annotators {sorted(missing)} are not in the cohort: {', '.join(cohort.annotators)} are")
    rows = [replace(row, annotators=tuple(a for a in row.annotators if a in annotators)) for row in rows]
    return replace(cohort, cases=tuple(rows), annotators=tuple(a for a in cohort.annotators if a in annotators))


def merge(first: Cohort, second: Cohort, *, name: str) -> Cohort:
    """Both cohorts' cases; the same annotator name is taken as the same person only if both are stable.

    Raises:
        CaseFormatError: other classes or reference, a case name twice, a group in two splits.
    """
    if first.classes != second.classes:
        raise CaseFormatError(
            f"the classes differ, {first.classes} and {second.classes}: ingest one of them again with the other's names"
        )
    if first.reference != second.reference and first.reference and second.reference:
        raise CaseFormatError(
            f"the references differ, {first.reference!r} and {second.reference!r}: ingest one again with the "
            "other's name"
        )
    licences = dict.fromkeys(cohort.licence for cohort in (first, second) if cohort.licence)
    merged = replace(
        first, name=name, cases=(*first.cases, *second.cases), reference=first.reference or second.reference,
        licence="; ".join(licences) or None, stable_annotators=first.stable_annotators and second.stable_annotators,
    )  # fmt: skip
    check_rows(merged.cases)
    return _with_annotators(merged)


def save_as(cohort: Cohort, url: str | os.PathLike[str]) -> Cohort:
    """Writes a cohort's table to a new place; its cases stay where they are.

    Raises:
        ConflictError: a cohort is already there.
    """
    place = table_url(url)
    moved = replace(cohort, url=parent(place))
    check_rows(moved.cases)
    create_bytes(place, encode(moved))
    return moved


def _with_annotators(cohort: Cohort) -> Cohort:
    """Lists everyone who drew somewhere: those known keep their order, new ones follow."""
    drew = dict.fromkeys(a for row in cohort.cases for a in row.annotators)
    known = tuple(a for a in cohort.annotators if a in drew)
    return replace(cohort, annotators=(*known, *sorted(set(drew) - set(known))))
