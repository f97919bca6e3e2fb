"""The experiments of jobs/reproduce.py: that their generated slides are what they claim, and that a table ends where it was asked to."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from casebook import IGNORE, Layer, describe_case, open_case, write_case, write_cohort

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "jobs"))

from reproduce_foveation import (  # noqa: E402
    DISC,
    GAP_PX,
    GROUND,
    SIDE_PX,
    TILE_PX,
    Foveation,
    goal_rows,
    slide,
)
from reproduce_mnist import TABLE, known, prepare, read_digits  # noqa: E402
from reproduce_mnist import goal_rows as mnist_goals  # noqa: E402
from reproduce_noise import GROWN, Lidc, Noisy, Setting, Vessels, method_of, spoilt  # noqa: E402
from reproduce_noise import goal_rows as noise_goals  # noqa: E402
from reproduce_pairs import Pair, compared, pairs_table  # noqa: E402
from reproduce_study import summary  # noqa: E402


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_stripes_nothing_is_left_at_half_resolution(seed: int) -> None:
    image, _ = slide(seed, noise=0.0)
    blocks = image[0].reshape(SIDE_PX // 2, 2, SIDE_PX // 2, 2)
    assert len(np.unique(image)) == 7  # ground, two bars, two stripes in bright and two in dark discs
    plain_discs = set(np.unique(blocks.mean((1, 3)))) - set(np.unique(image))
    assert plain_discs == {GROUND + DISC, GROUND - DISC}  # both kinds of stripes are one grey now


def test_no_tile_shows_a_disc_and_a_bar_of_its() -> None:
    assert GAP_PX + 1 >= TILE_PX  # from the last pixel of one to the first of the other


def test_as_many_of_the_bright_discs_are_tumour_as_of_the_dark() -> None:
    left = right = 0
    for seed in range(20):
        image, truth = slide(seed, noise=0.0)
        bright_first = bool(image[0, :, : SIDE_PX // 2].mean() > image[0, :, SIDE_PX // 2 :].mean())
        halves = (truth[:, : SIDE_PX // 2].mean(), truth[:, SIDE_PX // 2 :].mean())
        left, right = left + halves[not bright_first], right + halves[bright_first]
    assert 0.8 < left / right < 1.25


def read(url: str, layer: str) -> np.ndarray:
    case = open_case(url)
    return case.read_labels((layer,), 0, (0, 0), case.shapes[0])[0]


def test_as_many_pictures_are_spoilt_as_were_asked_for_and_the_reference_never(tmp_path: Path) -> None:
    truth = np.zeros((48, 48), np.uint8)
    truth[12:36, 12:36] = 1
    rows = []
    for number in range(6):
        layers = {Layer(id="crowd"): truth, Layer(id="gold", role="reference"): truth}
        url = f"{tmp_path}/clean/c{number}.ome.zarr"
        case = write_case(url, truth[None] * 9, spacing_um=(1.0, 1.0), classes=("bg", "cell"), layers=layers)
        rows.append(describe_case(case, split="train", group=str(number)))
    clean = write_cohort(tmp_path / "clean", rows, name="clean", classes=("bg", "cell"), reference="gold")
    noisy = spoilt(clean, tmp_path / "noisy", Setting(share=0.5, noise=GROWN), seed=0)
    drawn = [read(row.url, "drawing") for row in noisy.cases]
    assert sum((each != truth).any() for each in drawn) == 3
    assert all((each >= truth).all() for each in drawn)  # grown, never shrunk
    assert all((read(row.url, "gold") == truth).all() for row in noisy.cases)


def test_two_networks_of_cross_entropy_are_not_told_how_much_is_spoilt() -> None:
    shares = {row: method_of(row, 0.7).noisy_share for row in ("ce_two", "co_teaching", "supervision")}
    assert shares == {"ce_two": 0, "co_teaching": 0.7, "supervision": 0.7}


def test_a_line_of_the_table_is_the_mean_over_its_seeds() -> None:
    trials = [{"row": "a", "setting": "s", "seed": seed} for seed in range(3)]
    measured = list(
        zip(trials, [{"dice": d, "rmse": r} for d, r in ((0.5, None), (0.7, 0.1), (0.9, 0.3))], strict=True)
    )
    (line,) = summary(measured, {"a": "first"})
    assert (line["dice"], line["worst"], line["rmse"], line["seeds"]) == pytest.approx((0.7, 0.5, 0.2, 3))
    assert line["sd"] == pytest.approx(0.2)


def test_rows_are_compared_patient_by_patient_and_of_one_patient_nothing_more_is_said_than_by_how_much() -> None:
    def measured(row: str, dice: dict[str, float]) -> tuple[dict, dict]:
        return {"row": row, "setting": "s", "seed": 0}, {"patients": dice}

    both = [Pair(setting="s", ours="a", peer="b")]
    (many,) = compared([measured("a", {"x": 0.9, "y": 0.7}), measured("b", {"x": 0.6, "y": 0.6})], both)
    assert (many["difference"], many["wins"], many["patients"]) == (pytest.approx(0.2), 2, 2)
    assert 0 < many["low"] <= many["high"]
    one = compared([measured("a", {"x": 0.9}), measured("b", {"x": 0.6})], both)
    assert (one[0]["low"], one[0]["p"], one[0]["wins"]) == (None, None, 1)
    assert "+0.3000" in pairs_table(one)
    assert compared([measured("a", {"x": 0.9})], both) == []


def test_goals_compare_with_the_best_of_the_fixed_views() -> None:
    rows = goal_rows({"fixed_1": 0.5, "fixed_4": 0.6, "mean": 0.9, "ensemble": 0.75})
    assert [row.ratio for row in rows] == pytest.approx([1.5, 1.2])


def test_the_papers_gazes_are_set_beside_ours_as_shares_of_their_own_best_fixed_view() -> None:
    trials = [{"row": row, "setting": "clean", "seed": 0} for row in ("fixed_1", "mean")]
    fixed, mean = Foveation().lines(list(zip(trials, [{"dice": 0.6}, {"dice": 0.9}], strict=True)))
    assert (fixed["of_best_fixed"], fixed["paper_of_best_fixed"]) == (1, None)
    assert (mean["of_best_fixed"], mean["paper_of_best_fixed"]) == (pytest.approx(1.5), pytest.approx(76.1 / 70.6))


def test_of_five_drawings_one_setting_has_all_and_the_other_one_each() -> None:
    drawn, truth = np.ones((40, 5, 4, 4), np.uint8), np.zeros((40, 4, 4), np.uint8)
    assert prepare(TABLE["ceiling"], drawn, truth, "dense", 0).shape == (40, 1, 4, 4)
    assert not prepare(TABLE["ceiling"], drawn, truth, "one", 0).any()
    assert (prepare(TABLE["ours"], drawn, truth, "dense", 0) == drawn).all()
    alone = prepare(TABLE["ours"], drawn, truth, "one", 0)
    looked = (alone != IGNORE).all((2, 3))
    assert (looked.sum(1) == 1).all()
    assert (looked.sum(0) > 0).all()  # everybody has some
    assert (prepare(TABLE["ours"], drawn, truth, "one", 0) == alone).all()
    assert (prepare(TABLE["ours"], drawn, truth, "one", 1) != alone).any()


def test_the_oracle_knows_each_annotators_confusion() -> None:
    truth = np.array([[[0, 1], [1, 1]]], np.uint8)
    drawn = np.stack([truth, np.zeros_like(truth)], 1)  # a good one and a blank one
    assert known(drawn, truth).confusions == (((1, 0), (0, 1)), ((1, 1), (0, 0)))


def test_goals_of_digits_and_of_noise_are_ratios_to_the_row_that_the_issue_names() -> None:
    line = {"seeds": 10, "of_ceiling": 0.99, "worst_of_ceiling": 0.98, "rmse": 0.01, "paper_rmse": 0.0893}
    assert [row.value for row in mnist_goals({("ours", "dense"): line})] == [0.99, 0.98, 0.01]
    assert mnist_goals({("ours", "dense"): line | {"of_ceiling": None}}) == []
    rows = noise_goals({("30 %", "supervision"): 0.9, ("30 %", "ce"): 0.6, ("soft", "soft"): 0.8})
    assert [(row.ratio, row.goal) for row in rows] == [(pytest.approx(1.5), "> 1")]


def digits_file(path: Path, count: int) -> np.ndarray:
    """An IDX file of bright bars, in the layout of MNIST's."""
    images = np.zeros((count, 28, 28), np.uint8)
    for number, image in enumerate(images):
        image[6:22, 8 + number % 8 : 14 + number % 8] = 230
    with gzip.open(path, "wb") as file:
        file.write(b"\0" * 16 + images.tobytes())
    return images


def test_digits_are_read_as_they_lie_in_the_file(tmp_path: Path) -> None:
    images = digits_file(tmp_path / "digits.gz", 3)
    assert np.allclose(read_digits(str(tmp_path / "digits.gz")) * 255, images)
    with pytest.raises(FileNotFoundError, match="--mnist"):
        read_digits(str(tmp_path / "absent.gz"))


def reproduced(folder: Path, *asked: str) -> dict:
    """The record of a small run of the job."""
    command = [sys.executable, str(ROOT / "jobs/reproduce.py"), *asked, "--quick", "--storage", "runs"]
    command += ["--max-cpus", "2", "--record", "record.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "record.json").read_text())


def test_the_table_of_digits_is_filled_and_paired(tmp_path: Path) -> None:
    digits_file(tmp_path / "digits.gz", 300)
    rows = ["ceiling", "ours", "oracle", "separate"]
    record = reproduced(tmp_path, "mnist", "--mnist", "digits.gz", "--settings", "dense", "--only", *rows)
    assert {line["key"] for line in record["rows"]} == set(rows)
    ours = next(line for line in record["rows"] if line["key"] == "ours")
    assert (ours["paper_dice"], ours["paper_rmse"]) == (82.92, 0.0893)
    assert 0 <= ours["rmse"] <= 1
    assert [(pair["peer"], pair["patients"]) for pair in record["paired"]] == [
        ("ceiling", 30), ("separate", 30), ("oracle", 30)
    ]  # fmt: skip


def test_the_table_of_a_crowd_is_filled_and_paired(tmp_path: Path, shared: Path) -> None:
    asked = ["--source", str(shared / "data/bubil/d4"), "--settings", "50 % biased", "--only", "ce", "supervision"]
    record = reproduced(tmp_path, "cells", *asked)
    assert {line["key"]: line["seeds"] for line in record["rows"]} == {"ce": 1, "supervision": 1}
    assert [(pair["ours"], pair["peer"]) for pair in record["paired"]] == [("supervision", "ce")]


@pytest.mark.parametrize(("study", "source"), [(Lidc, "lidc"), (Vessels, "chase")])
def test_radiologists_and_observers_get_one_drawing_a_case_and_their_vote_for_a_reference(
    tmp_path: Path, shared: Path, study: type[Noisy], source: str
) -> None:
    asked = study(source=str(shared / "data" / source), storage=str(tmp_path), settings=("50 %",), seeds=1)
    (cohort,) = asked.data().values()
    assert (cohort.annotators, cohort.reference) == (("drawing",), "gold")
    assert {row.split for row in cohort.cases} == {"train", "validation", "test"}


def test_the_job_writes_its_table_its_record_and_its_picture(tmp_path: Path) -> None:
    asked = ["foveation", "--quick", "--only", "fixed_4", "--storage", "runs", "--max-cpus", "2"]
    files = ["--json", "rows.json", "--record", "record.json", "--picture", "table.png"]
    command = [sys.executable, str(ROOT / "jobs/reproduce.py"), *asked, *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fixed, field of view 4" in done.stdout
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["rows"][0]["seeds"] == Foveation().hurried().seeds == 1
    assert (tmp_path / "table.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "rows.json").read_text()) == []  # none of the rows with a goal was asked for


def test_a_row_that_is_not_in_the_table_is_named_before_anything_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs/reproduce.py"), "foveation", "--only", "nobody"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "--only nobody: known are fixed_1, fixed_2" in done.stderr
    assert not list(tmp_path.iterdir())
