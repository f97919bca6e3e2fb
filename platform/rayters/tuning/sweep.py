"""A sweep: many trials, run by Ray Tune on the cluster it finds. The one file with ray.tune.

A trial is a dict of JSON values, its result another. Each result is written beside the others the moment it is there, under a name
made from the trial, so a sweep that was killed goes on where it was, and a longer list re-uses what a shorter one measured.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig

Trial = Mapping[str, Any]
Result = Mapping[str, Any]


def run_trials(
    function: Callable[[Trial, Any], Result],
    trials: Sequence[Trial],
    folder: Path,
    *,
    data: Any = None,
    cpus: float = 1,
    gpus: float = 0,
) -> list[Result | None]:
    """The result of each trial, in order; None for one that failed (its traceback is in Ray's log). Needs an initialised Ray.

    function: (trial, data) -> result. folder: where results are kept, one JSON file per trial.
    data: shared by all trials through the object store, once per node. cpus, gpus: what one trial occupies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [trial for trial in trials if read_result(folder, trial) is None]
    if missing:

        def trainable(config: dict[str, Any], data: Any) -> dict[str, Any]:
            return {"result": dict(function(config["trial"], data))}

        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, data=data), {"cpu": cpus, "gpu": gpus}),
            param_space={"trial": tune.grid_search([dict(trial) for trial in missing])},
            run_config=RunConfig(
                storage_path=str((folder / "tune").absolute()),
                failure_config=FailureConfig(max_failures=2),
                callbacks=[_Keeper(folder)],
                verbose=0,
            ),
        )
        tuner.fit()
    return [read_result(folder, trial) for trial in trials]


def read_result(folder: Path, trial: Trial) -> Result | None:
    """What a trial measured, or None when it has not been run."""
    path = _path(folder, trial)
    return dict(json.loads(path.read_text())["result"]) if path.exists() else None


def write_result(folder: Path, trial: Trial, result: Result) -> None:
    """Keeps a result, whole or not at all."""
    draft = _path(folder, trial).with_suffix(".part")
    draft.write_text(json.dumps({"trial": dict(trial), "result": dict(result)}, indent=1))
    draft.replace(_path(folder, trial))


class _Keeper(Callback):
    """Writes each result when its trial ends, in the process that drives the sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """trial.last_result holds what the function returned, and Tune's own entries."""
        write_result(self.folder, trial.config["trial"], trial.last_result["result"])


def trial_key(trial: Trial) -> str:
    """A name for a trial, the same wherever it is asked for."""
    return hashlib.sha256(json.dumps(dict(trial), sort_keys=True).encode()).hexdigest()[:16]


def _path(folder: Path, trial: Trial) -> Path:
    return folder / f"{trial_key(trial)}.json"
