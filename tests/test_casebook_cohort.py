"""A cohort lists whole cases, keeps patients together, and moves as one folder."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casebook import (
    IGNORE,
    CaseFormatError,
    CaseNotFoundError,
    Layer,
    describe_case,
    open_cohort,
    split_by_group,
    write_case,
    write_cohort,
)


def a_row(base, name="a", split="train", group="p1", labels=None):
    image = np.zeros((2, 6, 8), np.uint8)
    image[1] = 10
    image[1, :3] = 30
    labels = labels if labels is not None else {"x": np.zeros((6, 8), np.uint8), "y": np.eye(6, 8, dtype=np.uint8)}
    layers = {Layer(id=id): array for id, array in labels.items()}
    case = write_case(f"{base}/cases/{name}.ome.zarr", image, spacing_um=(1, 1), classes=("bg", "fg"), layers=layers)
    return describe_case(case, split=split, group=group)


def test_a_cohort_comes_back_as_it_was_written_and_moves_with_its_folder(tmp_path):
    base = tmp_path / "here"
    cohort = write_cohort(base, [a_row(base)], name="c", classes=("bg", "fg"), licence="CC0")
    assert open_cohort(base) == cohort
    assert open_cohort(base / "cohort.parquet") == cohort
    shutil.move(base, tmp_path / "there")
    assert open_cohort(tmp_path / "there").cases[0].url == str(tmp_path / "there/cases/a.ome.zarr")


def test_processes_that_read_a_cohort_and_end_at_once_end_well(tmp_path):
    write_cohort(tmp_path, [a_row(tmp_path)], name="c", classes=("bg", "fg"))
    read = [sys.executable, "-c", f"from casebook import open_cohort; open_cohort({str(tmp_path)!r})"]
    at_once = [subprocess.Popen(read, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    assert [(process.communicate()[1], process.returncode) for process in at_once] == [("", 0)] * 6


def test_a_row_tells_what_sampling_needs(tmp_path):
    row = a_row(
        tmp_path,
        labels={
            "x": np.zeros((6, 8), np.uint8),
            "y": np.pad(np.full((2, 8), IGNORE, np.uint8), ((0, 4), (0, 0)), constant_values=1),
        },
    )
    assert row.mean == (0.0, 20.0)
    assert row.std == (0.0, 10.0)
    assert row.foreground == ((48,), (32,))  # x wrote background everywhere, y foreground on four rows
    assert row.disagreement == (32,)  # where y did not look nobody disagrees


def test_a_reference_is_not_an_annotator_and_counts_for_nothing(tmp_path):
    case = write_case(tmp_path / "a.ome.zarr", np.zeros((1, 4, 4), np.uint8), spacing_um=(1, 1), classes=("bg", "fg"),
                      layers={Layer(id="gold", role="reference"): np.ones((4, 4), np.uint8)})  # fmt: skip
    row = describe_case(case, split="test", group="a")
    assert row.annotators == ()
    assert row.foreground == ((0,), (0,))


def test_blocks_of_a_larger_case_lie_in_c_order(tmp_path):
    labels = np.zeros((1500, 1100), np.uint8)
    labels[1200:1210, 3:7] = 1
    case = write_case(
        tmp_path / "a.ome.zarr",
        np.zeros((1, 1500, 1100), np.uint8),
        spacing_um=(1, 1),
        classes=("bg", "fg"),
        layers={Layer(id="a"): labels},
    )
    row = describe_case(case, split="test", group="a")
    assert row.block_px == (128, 128)
    assert {cell: count for cell, count in enumerate(row.foreground[1]) if count} == {9 * 9: 40}  # row 9 of 9 columns


def test_a_patient_in_two_splits_is_refused(tmp_path):
    rows = [a_row(tmp_path), a_row(tmp_path, "b", split="test")]
    with pytest.raises(CaseFormatError, match="group 'p1' is in splits 'train' and 'test'"):
        write_cohort(tmp_path, rows, name="c", classes=("bg", "fg"))


def test_a_cohort_that_does_not_exist_says_where_it_looked_and_how_to_make_one(tmp_path):
    with pytest.raises(CaseNotFoundError, match=r"no cohort lies at .*nowhere.*ingest"):
        open_cohort(tmp_path / "nowhere")


def test_a_damaged_table_is_refused(tmp_path):
    write_cohort(tmp_path, [a_row(tmp_path)], name="c", classes=("bg", "fg"))
    table = tmp_path / "cohort.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(CaseFormatError, match="not a cohort table"):
        open_cohort(tmp_path)


def test_a_table_of_a_newer_schema_asks_for_an_update(tmp_path, monkeypatch):
    monkeypatch.setattr("casebook.cohort.SCHEMA", 2)
    write_cohort(tmp_path, [a_row(tmp_path)], name="c", classes=("bg", "fg"))
    monkeypatch.setattr("casebook.cohort.SCHEMA", 1)
    with pytest.raises(CaseFormatError, match=r"has schema 2, this casebook reads 1: update"):
        open_cohort(tmp_path)


def test_a_split_keeps_everything_but_the_other_cases(tmp_path):
    cohort = write_cohort(
        tmp_path, [a_row(tmp_path), a_row(tmp_path, "b", "test", "p2")], name="c", classes=("bg", "fg")
    )
    assert [row.case for row in cohort.split("test").cases] == ["b"]
    with pytest.raises(ValueError, match="train, validation, test"):
        cohort.split("dev")


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=60), st.integers(0, 5))
def test_splits_depend_on_the_groups_and_the_seed_only(groups, seed):
    split = split_by_group(groups, seed=seed)
    assert split == split_by_group(groups[::-1], seed=seed)
    assert set(split) == set(groups)


def test_splits_come_close_to_their_fractions():
    groups = [f"p{i}" for i in range(1000)]
    counts = list(split_by_group(groups, (0.7, 0.1, 0.2)).values())
    assert (counts.count("train"), counts.count("validation"), counts.count("test")) == (700, 100, 200)


def test_a_settled_group_keeps_its_split():
    groups = [f"p{i}" for i in range(10)]
    before = split_by_group(groups[:5], seed=3)
    after = split_by_group(groups, seed=3, fixed=before)
    assert all(after[g] == before[g] for g in before)
