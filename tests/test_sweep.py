"""A sweep runs what is missing, keeps what is there, and outlives a failed trial."""

import json
from pathlib import Path

import pytest

from rayters.tuning.sweep import (
    Halving,
    Mutation,
    Report,
    ReportState,
    read_result,
    run_population,
    run_trials,
    write_result,
)


def square(trial: dict[str, int], data: int, report: Report) -> dict[str, int]:
    if trial["x"] == 13:
        raise ValueError("an unlucky trial")
    return {"y": trial["x"] ** 2 + data}


def test_a_result_is_found_again_by_its_trial(tmp_path: Path) -> None:
    write_result(tmp_path, {"x": 1, "row": "ours"}, {"y": 2})
    assert read_result(tmp_path, {"row": "ours", "x": 1}) == {"y": 2}
    assert read_result(tmp_path, {"row": "ours", "x": 2}) is None


def test_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    write_result(tmp_path, {"x": 2}, {"y": -1})
    assert run_trials(square, [{"x": 2}], tmp_path) == [{"y": -1}]  # without any Ray


@pytest.mark.usefixtures("ray_session")
def test_trials_run_on_ray_and_one_that_fails_leaves_a_gap(tmp_path: Path) -> None:
    trials = [{"x": 3}, {"x": 13}, {"x": 4}]
    assert run_trials(square, trials, tmp_path, data=1) == [{"y": 10}, None, {"y": 17}]


def climb(trial: dict[str, float], data: None, report: Report) -> dict[str, float]:
    for epoch in range(1, 10):
        report(epoch, trial["speed"] * epoch)
    return {"height": trial["speed"] * 9}


@pytest.mark.usefixtures("ray_session")
def test_asha_ends_trials_that_are_behind_and_keeps_how_far_they_came(tmp_path: Path) -> None:
    trials = [{"speed": speed} for speed in (1.0, 0.9, 0.8, 0.1)]
    fast, *_, slow = run_trials(climb, trials, tmp_path, halving=Halving(most=9))
    assert fast == {"height": 9.0}
    assert slow is not None
    assert slow["stopped"]["epoch"] < 9
    assert read_result(tmp_path, {"speed": 0.1}) == slow  # a sweep that goes on does not train it again


def follow(values: dict[str, float], data: None, report: ReportState, state: bytes | None) -> dict[str, float]:
    """Height grows by 1 less the distance of x from what the epoch wants: 0.2 at first, 0.8 later."""
    done, height = json.loads(state) if state else (0, 0.0)
    for epoch in range(done + 1, 9):
        height += 1 - abs(values["x"] - (0.2 if epoch <= 4 else 0.8))
        if epoch < 8:
            report(epoch, height, json.dumps([epoch, height]).encode())
    return {"dice": height}


@pytest.mark.usefixtures("ray_session")
def test_a_population_finds_a_schedule_and_says_which(tmp_path: Path) -> None:
    found = run_population(follow, {"x": Mutation(low=0, high=1)}, tmp_path, members=4)
    assert len(found) == 4
    for result in found:
        schedule = result["schedule"]
        assert [each["epoch"] for each in schedule] == list(range(1, 9))  # whoever trained them
        heights = [1 - abs(each["x"] - (0.2 if each["epoch"] <= 4 else 0.8)) for each in schedule]
        assert result["dice"] == pytest.approx(sum(heights))
        assert all(0 <= each["x"] <= 1 for each in schedule)
    values = [{each["x"] for each in result["schedule"]} for result in found]
    assert any(len(each) > 1 for each in values)  # who took over went on otherwise
