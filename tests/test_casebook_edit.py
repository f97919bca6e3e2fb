"""Cohorts grow, shrink and join without losing a case or splitting a patient."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from casebook import (
    CaseFormatError,
    CaseRow,
    Cohort,
    ConflictError,
    merge,
    open_cohort,
    put_cases,
    remove_cases,
    save_as,
    subset,
)


def row(name, group=None, split="train", annotators=("anna",)):
    return CaseRow(
        case=name, url=f"/data/{name}.ome.zarr", split=split, group=group or name, axes=("y", "x"), channels=1, dtype="uint8",
        shape=(4, 4), spacing_um=(1.0, 1.0), chunk_px=(4, 4), annotators=annotators, mean=(0.0,), std=(1.0,), block_px=(4, 4),
        foreground=((16,), (0,)), disagreement=(0,),
    )  # fmt: skip


EMPTY = Cohort(
    url="",
    name="c",
    classes=("bg", "fg"),
    annotators=(),
    stable_annotators=True,
    reference=None,
    licence="CC0",
    cases=(),
)


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    return str(tmp_path) if request.param == "file" else f"memory://{tmp_path.name}"


def test_cases_are_added_replaced_and_removed(url):
    put_cases(url, [row("b"), row("a")], empty=EMPTY)
    cohort = put_cases(url, [row("a", annotators=("ben",)), row("c")], empty=EMPTY)
    assert cohort == open_cohort(url)
    assert [r.case for r in cohort.cases] == ["a", "b", "c"]
    assert cohort.annotators == ("anna", "ben")
    assert [r.case for r in remove_cases(url, ["b"]).cases] == ["a", "c"]
    with pytest.raises(CaseFormatError, match="no case b"):
        remove_cases(url, ["b"])


def test_a_patient_keeps_the_split_that_was_settled(url):
    put_cases(url, [row("a", "p1", "test")], empty=EMPTY)
    assert put_cases(url, [row("b", "p1", "train")], empty=EMPTY).cases[1].split == "test"


def test_of_eight_writers_none_is_lost(url):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: put_cases(url, [row(f"c{i}")], empty=EMPTY), range(8)))
    assert len(open_cohort(url).cases) == 8


def test_other_classes_do_not_mix(url):
    put_cases(url, [row("a")], empty=EMPTY)
    with pytest.raises(CaseFormatError, match="another cohort"):
        put_cases(url, [row("b")], empty=replace(EMPTY, classes=("bg", "other")))


def test_two_cohorts_join_and_stay_honest_about_who_is_who():
    first = replace(EMPTY, cases=(row("a"),), annotators=("anna",))
    second = replace(
        EMPTY, cases=(row("b", annotators=("ben",)),), annotators=("ben",), stable_annotators=False, licence="CC BY"
    )
    both = merge(first, second, name="both")
    assert both.annotators == ("anna", "ben")
    assert not both.stable_annotators
    assert both.licence == "CC0; CC BY"
    with pytest.raises(CaseFormatError, match="two cases are named 'a'"):
        merge(first, first, name="x")


def test_a_part_of_a_cohort_is_saved_beside_it(url):
    whole = put_cases(url, [row("a", annotators=("anna", "ben")), row("b", split="test")], empty=EMPTY)
    part = subset(whole, lambda r: r.split == "train", annotators=("ben",))
    saved = save_as(part, url + "/part")
    assert saved == open_cohort(url + "/part")
    assert [r.annotators for r in saved.cases] == [("ben",)]
    with pytest.raises(ConflictError):
        save_as(part, url + "/part")
