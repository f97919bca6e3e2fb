"""A sweep runs what is missing, keeps what is there, and outlives a failed trial."""

from pathlib import Path

import pytest

from rayters.tuning.sweep import read_result, run_trials, write_result


def square(trial: dict[str, int], data: int) -> dict[str, int]:
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
