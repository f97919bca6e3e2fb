"""One trial: one candidate trained from one seed, in the process that Ray Tune gives it, and measured.

It trains by itself, not through Ray Train. A search has many small trainings and wants many of them side by side; a Ray Train inside each
would bring a controller, workers and readers of its own (four times the time for short trials, measured) and three ways to wait for ever:
drivers that hold the CPUs their workers need, stopped trials whose placement group nobody frees, reports that queue. The price: a trial
has one process and at most one GPU, or a part of one. What is found is trained at full size by jobs/train.py.
"""

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from casebook import Cohort
from rayters.training.local import local_stream
from rayters.training.loop import Epoch, fit
from rayters.training.model import Model, save_model
from rayters.training.run import Run, resolve, task_of
from rayters.training.team import Team
from rayters.tuning.criterion import noisy_agreement, reference_agreement
from rayters.tuning.space import Space
from rayters.tuning.sweep import Report, ReportState, trial_key


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all trials of a search share. models: folder that keeps every trained model, one that all machines reach, or None."""

    cohort: Cohort
    space: Space
    base: Run
    models: Path | None = None


def run_trial(trial: Mapping[str, Any], bench: Bench, report: Report) -> dict[str, Any]:
    """Trains and measures {"candidate", "seed"}.

    report: told the agreement after each epoch.

    Returns the criterion: "dice" (mean over validation cases and annotators), "ece", "seconds" of training; "cases", Dice by validation
    case; "curve", the agreement after each epoch; "folder" of the model; and "reported", which nothing is chosen by: Dice by test case with
    the annotators ("noisy") and with the reference. A candidate that is no valid training returns {"failed": why}.
    """
    try:
        run = _run(trial, bench)
    except ValueError as error:
        return {"failed": str(error)}
    return _measured(run, trial, bench, Watch(report), None)


def run_member(trial: Mapping[str, Any], bench: Bench, report: ReportState, state: bytes | None) -> dict[str, Any]:
    """One member of a population: as ``run_trial``, but it goes on from a state, which may be another member's, and reports its own.

    A net that goes astray is not begun anew here: the population leaves such members behind.
    """
    run = replace(_run(trial, bench), restarts=0)
    return _measured(run, trial, bench, Member(report, run.epochs), state)


def _measured(run: Run, trial: Mapping[str, Any], bench: Bench, watch: "Watch", state: bytes | None) -> dict[str, Any]:
    started = time.monotonic()
    model = _train(run, bench.cohort, watch, torch.load(io.BytesIO(state), weights_only=True) if state else None)
    seconds = time.monotonic() - started
    found = noisy_agreement(model, bench.cohort.split("validation"))
    test = bench.cohort.split("test")
    held = reference_agreement(model, test)
    return {
        "dice": found.mean_dice,
        "ece": found.ece,
        "seconds": seconds,
        "cases": found.dice,
        "curve": watch.agreement,
        "folder": _keep(model, trial, bench),
        "reported": {"noisy": noisy_agreement(model, test).dice, "reference": held.dice if held else {}},
    }


def _run(trial: Mapping[str, Any], bench: Bench) -> Run:
    run = bench.space.run(trial["candidate"], bench.base)
    return resolve(replace(run, seed=run.seed + trial["seed"]), bench.cohort)


def _train(run: Run, cohort: Cohort, watch: "Watch", state: Mapping[str, Any] | None) -> Model:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)  # one CPU is what the trial was given
    task = task_of(run, cohort)
    last = fit(run, task, local_stream(run, cohort), watch, team=Team(device=device), state=state)
    return Model(
        run=run,
        task=task,
        classes=cohort.classes,
        annotators=cohort.annotators,
        measured=last.measured,
        net=last.net.eval(),
    )


def _keep(model: Model, trial: Mapping[str, Any], bench: Bench) -> str:
    if bench.models is None:
        return ""
    folder = bench.models / trial_key(trial)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model)
    return str(folder)


class Watch:
    """Notes the agreement after every epoch of the last attempt, and reports it."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.agreement: list[float] = []
        self.attempt = self.epochs = 0

    def on_step(self, attempt: int, epoch: int, step: int, parts: Mapping[str, Tensor]) -> None:
        """Nothing to note."""

    def on_pause(self, net: nn.Module, state: Mapping[str, Any]) -> None:
        """Nothing to note."""

    def on_epoch(self, epoch: Epoch) -> None:
        """A new attempt begins a new curve."""
        if epoch.attempt != self.attempt:
            self.attempt, self.agreement = epoch.attempt, []
        self.agreement.append(float(epoch.measured["agreement"]))
        self.epochs += 1
        self.report(self.epochs, self.agreement[-1])


class Member(Watch):
    """Reports a state too, after every epoch but the last: then there is nothing left to go on with."""

    def __init__(self, report: ReportState, epochs: int) -> None:
        super().__init__(lambda done, score: None)
        self.tell, self.last = report, epochs

    def on_epoch(self, epoch: Epoch) -> None:
        """The epoch's number is the training's, whoever trained the earlier ones."""
        super().on_epoch(epoch)
        if epoch.epoch + 1 < self.last:
            stream = io.BytesIO()
            torch.save(dict(epoch.state), stream)
            self.tell(epoch.epoch + 1, self.agreement[-1], stream.getvalue())
