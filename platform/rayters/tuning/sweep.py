"""A sweep: many trials, run by Ray Tune on the cluster it finds. The one file with ray.tune.

A trial is a dict of JSON values, its result another. Each result is written beside the others the moment it is there, under a name
made from the trial, so a sweep that was killed goes on where it was, and a longer list re-uses what a shorter one measured.

With halving, Ray Tune's ASHA ends trials that are behind; what is kept of such a trial is {"stopped": {"epoch", "score"}}.
A population is a sweep whose trials learn from each other: those behind go on from the state of one ahead, with other values.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ray import tune
from ray.tune import Callback, FailureConfig, RunConfig
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining

Trial = Mapping[str, Any]
Result = Mapping[str, Any]
Report = Callable[[int, float], None]
"""Tells the sweep (epochs done, score so far); it may not return, for then the trial is behind and ends there."""
ReportState = Callable[[int, float, bytes], None]
"""The same with a state from which this member of a population, or another, can go on."""


@dataclass(frozen=True, kw_only=True)
class Halving:
    """Asynchronous successive halving: a trial goes on after ``first``, ``first * factor``, ... epochs where its score is in the best
    1/factor of those that came so far. Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020.

    most: epochs of a whole trial.
    """

    most: int
    first: int = 1
    factor: int = 3

    def scheduler(self) -> ASHAScheduler:
        """Ray Tune's."""
        return ASHAScheduler(
            time_attr="epoch",
            metric="score",
            mode="max",
            max_t=self.most + 2,  # a whole trial ends by itself, one "epoch" after its last, with its result
            grace_period=self.first,
            reduction_factor=self.factor,
        )


def run_trials(
    function: Callable[[Trial, Any, Report], Result],
    trials: Sequence[Trial],
    folder: Path,
    *,
    data: Any = None,
    cpus: float = 1,
    gpus: float = 0,
    halving: Halving | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[Result | None]:
    """The result of each trial, in order; None for one that failed (its traceback is in Ray's log). Needs an initialised Ray.

    function: (trial, data, report) -> result; it reports after each epoch, which matters with halving only.
    folder: where results are kept, one JSON file per trial.
    data: shared by all trials through the object store, once per node. cpus, gpus: what one trial occupies. callbacks: Ray Tune's, as of
        experiment trackers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [trial for trial in trials if read_result(folder, trial) is None]
    if missing:

        def trainable(config: dict[str, Any], data: Any) -> dict[str, Any]:
            last = {"epoch": 0, "score": 0.0}

            def report(epoch: int, score: float) -> None:
                last.update(epoch=epoch, score=score)
                tune.report(dict(last))

            result = dict(function(config["trial"], data, report))
            return {"result": result, "epoch": last["epoch"] + 1, "score": last["score"]}

        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trainable, data=data), {"cpu": cpus, "gpu": gpus}),
            param_space={"trial": tune.grid_search([dict(trial) for trial in missing])},
            tune_config=tune.TuneConfig(scheduler=halving.scheduler() if halving else None),
            run_config=RunConfig(
                storage_path=str((folder / "tune").absolute()),
                failure_config=FailureConfig(max_failures=2),
                callbacks=[_Keeper(folder), *callbacks],
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


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A number that a population may change during the training: between low and high, drawn evenly or by its logarithm."""

    low: float
    high: float
    log: bool = False

    def domain(self) -> Any:
        """Ray Tune's."""
        return tune.loguniform(self.low, self.high) if self.log else tune.uniform(self.low, self.high)


def run_population(
    function: Callable[[Trial, Any, ReportState, bytes | None], Result],
    mutations: Mapping[str, Mutation],
    folder: Path,
    *,
    members: int,
    every: int = 1,
    seed: int = 0,
    data: Any = None,
    cpus: float = 1,
    gpus: float = 0,
) -> list[Result]:
    """The results of a population, each with "schedule": [{"epoch", name: value, ...}, ...] that led to it, whoever trained its epochs.

    function: ({name: value}, data, report, state to go on from) -> result with "dice"; it reports after each epoch but the last. Every
    ``every`` epochs the worst quarter takes over state and values of the best quarter, and changes the values. A population that was
    killed goes on from its last reports. Source: Jaderberg et al., Population Based Training of Neural Networks, arXiv:1711.09846.
    """

    def trainable(config: dict[str, Any], data: Any) -> dict[str, Any]:
        values = {name: float(config[name]) for name in mutations}
        state, schedule = _gone_on()

        def report(epoch: int, score: float, state: bytes) -> None:
            schedule.append({"epoch": epoch, **values})
            with TemporaryDirectory() as place:
                (Path(place) / "state").write_bytes(state)
                (Path(place) / "schedule.json").write_text(json.dumps(schedule))
                tune.report({"epoch": epoch, "score": score}, checkpoint=tune.Checkpoint.from_directory(place))

        result = dict(function(values, data, report, state))
        last = schedule[-1]["epoch"] + 1 if schedule else 1
        return {
            "result": result | {"schedule": [*schedule, {"epoch": last, **values}]},
            "epoch": last,
            "score": result["dice"],
        }

    wrapped = tune.with_resources(tune.with_parameters(trainable, data=data), {"cpu": cpus, "gpu": gpus})
    path = str((folder / "population").absolute())
    if tune.Tuner.can_restore(path):
        tuner = tune.Tuner.restore(path, wrapped, resume_errored=True)
    else:
        random.seed(seed)  # Ray Tune's scheduler draws from the process's generators
        np.random.seed(seed)  # noqa: NPY002
        tuner = tune.Tuner(
            wrapped,
            param_space={name: each.domain() for name, each in mutations.items()},
            tune_config=tune.TuneConfig(num_samples=members, scheduler=_scheduler(mutations, every)),
            run_config=RunConfig(
                name="population",
                storage_path=str(folder.absolute()),
                failure_config=FailureConfig(max_failures=3),
                verbose=0,
            ),
        )
    grid = tuner.fit()
    ended = [grid[number].metrics or {} for number in range(len(grid))]
    return [each["result"] for each in ended if "result" in each]


def _scheduler(mutations: Mapping[str, Mutation], every: int) -> PopulationBasedTraining:
    return PopulationBasedTraining(
        time_attr="epoch",
        metric="score",
        mode="max",
        perturbation_interval=every,
        hyperparam_mutations={name: each.domain() for name, each in mutations.items()},
        custom_explore_fn=lambda values: _within(values, mutations),
        synch=True,  # all wait for each other: who is ahead does not depend on how fast a machine is
    )


def _within(values: dict[str, Any], mutations: Mapping[str, Mutation]) -> dict[str, Any]:
    """Values that were multiplied by 0.8 or 1.2 may lie beyond their range."""
    held = {name: min(max(values[name], each.low), each.high) for name, each in mutations.items()}
    return values | held


def _gone_on() -> tuple[bytes | None, list[dict[str, float]]]:
    """State and schedule of the checkpoint that this member was given, if any."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None, []
    with checkpoint.as_directory() as place:
        return (Path(place) / "state").read_bytes(), json.loads((Path(place) / "schedule.json").read_text())


class _Keeper(Callback):
    """Writes each result when its trial ends, in the process that drives the sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """trial.last_result holds what the function returned or last reported, and Tune's own entries."""
        last = trial.last_result
        stopped = {"stopped": {"epoch": last["epoch"], "score": last["score"]}}
        write_result(self.folder, trial.config["trial"], last.get("result", stopped))


def trial_key(trial: Trial) -> str:
    """A name for a trial, the same wherever it is asked for."""
    return hashlib.sha256(json.dumps(dict(trial), sort_keys=True).encode()).hexdigest()[:16]


def _path(folder: Path, trial: Trial) -> Path:
    return folder / f"{trial_key(trial)}.json"
