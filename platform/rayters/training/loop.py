"""The training loop. It knows no cluster: batches come from a callable, news go to an observer, a team averages.

attempt 0: epoch 0, 1, ... last -> the sentinel looks at the agreement with the annotators -> astray? -> attempt 1, a new seed

A state says where the training stands, in the midst of an epoch too, and a team of any size goes on from it: weights, optimiser,
and which batches were done by whom. Nothing else is random or remembered: noise and learning rate are functions of the step.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rayters.networks.task import Task
from rayters.patches.resume import Leg, Position
from rayters.training.device import Arrays, on_device
from rayters.training.learner import Learner
from rayters.training.run import Run
from rayters.training.step import augmented, train_step
from rayters.training.team import Team
from rayters.training.validation import validate

Batches = Callable[[Position], Iterable[Arrays]]
"""This member's share of the batches from a position on, to the end of its epoch; as many for every member."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What the loop reads: training batches by epoch, and the validation split, the same every time."""

    left: Callable[[Position], int]  # batches from there to the end of the epoch, the same for every member
    train: Batches
    validation: Callable[[], Iterable[Arrays]]

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.left(Position())


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a training stands. ``epoch`` is the one to go on with, of which ``step`` steps are done, ``legs`` says by whom."""

    attempt: int = 0
    epoch: int = 0
    step: int = 0
    legs: tuple[Leg, ...] = ()
    loss: float = 0.0  # sum over the members and steps of this epoch so far
    losses: float = 0.0  # how many
    best: float = inf  # lowest validation loss of this attempt, and how many epochs ago it was
    stale: int = 0
    end: str = ""  # "finished", or "astray": the next attempt begins

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Place":
        """The place in a state."""
        place = dict(state["place"])
        return cls(**place | {"legs": tuple(Leg(**leg) for leg in place["legs"])})


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """News of one epoch. ``measured`` are means over the team; ``state`` resumes the training after this epoch.

    net, kept: the net to keep and what was measured of it: the newest, or with ``run.patience`` the best so far.
    """

    attempt: int
    epoch: int
    measured: Mapping[str, float]
    net: nn.Module
    kept: Mapping[str, float]
    state: Mapping[str, Any]


class Observer(Protocol):
    """Who wants to know how the training goes."""

    def on_step(self, attempt: int, epoch: int, step: int, parts: Mapping[str, Tensor]) -> None:
        """After every step; ``parts`` stay on the device unless somebody looks."""

    def on_pause(self, net: nn.Module, state: Mapping[str, Any]) -> None:
        """In the midst of an epoch, on every member of the team: the training can go on from ``state``."""

    def on_epoch(self, epoch: Epoch) -> None:
        """After every epoch, on every member of the team."""


def fit(
    run: Run,
    task: Task,
    stream: Stream,
    observer: Observer,
    *,
    team: Team,
    state: Mapping[str, Any] | None = None,
    pause_steps: int = 0,
) -> Epoch:
    """Trains to the end, from the beginning or from an earlier ``state``, and returns the last epoch's news.

    pause_steps: tell the observer a state every so many steps within an epoch, as long as there is a patch for each of ``team.most``;
                 0: at the ends of epochs only.
    """
    training = Training(run, task, stream, observer, team, pause_steps)
    place = Place.of(state) if state else Place()
    if state and not place.end:
        training.start(place.attempt, state)
    while True:
        if place.end == "astray":
            place = Place(attempt=place.attempt + 1)
        if training.attempt != place.attempt:
            training.start(place.attempt)
        news = training.epoch(place)
        place = Place.of(news.state)
        if place.end == "finished":
            return news


def is_finished(state: Mapping[str, Any]) -> bool:
    """True when ``fit`` would have nothing left to do from this state."""
    return Place.of(state).end == "finished"


class Training:
    """One run in the hands of one member of the team."""

    def __init__(self, run: Run, task: Task, stream: Stream, observer: Observer, team: Team, pause_steps: int) -> None:
        self.run, self.task, self.stream, self.observer, self.team = run, task, stream, observer, team
        self.pause_steps, self.attempt, self.steps = pause_steps, -1, stream.steps
        self.learner: Learner
        self.best: dict[str, Any] = {}  # weights and measurements of the net to keep, where that is not the newest

    def start(self, attempt: int, state: Mapping[str, Any] | None = None) -> None:
        """A fresh net, or the one of a state."""
        self.attempt, self.learner = attempt, Learner(self.run, self.task, self.team, attempt)
        self.best = dict(state["best"]) if state else {}
        if state:
            self.learner.load(state["learner"])

    def epoch(self, place: Place) -> Epoch:
        """Trains what is left of an epoch, validates, and tells the observer."""
        place = self._train(place)
        loss = place.loss / max(place.losses, 1)
        shown = self.learner.shown()
        measured = {"loss": loss, **validate(self.run, self.task, shown, self.stream.validation(), team=self.team)}
        place = self._after(place, measured)
        measured["astray"] *= bool(place.end)  # in the midst of a training nobody has gone astray yet
        net, kept = self._keep(shown, measured, place)
        news = Epoch(
            attempt=place.attempt,
            epoch=place.epoch - 1,
            measured=measured,
            net=net,
            kept=kept,
            state=self._state(place),
        )
        self.observer.on_epoch(news)
        return news

    def _train(self, place: Place) -> Place:
        """The steps from ``place`` to the end of its epoch."""
        share = self.run.batch_size // self.team.size
        start = Position.after(place.epoch, place.legs, world=self.team.size, batch_size=share)
        self.learner.net.train()
        total = torch.tensor([place.loss, place.losses], dtype=torch.float64, device=self.team.device)
        total *= self.team.leads  # what is remembered is the team's: one member brings it in
        at, left = place, self.stream.left(start)
        for done, columns in enumerate(on_device(self.stream.train(start), self.team.device), 1):
            total += self._step(at, columns)
            legs = start.legs(done, world=self.team.size, batch_size=share)
            at = replace(place, step=place.step + done, legs=legs)
            if self._may_pause(at.step, left - done):
                loss, losses = self.team.sum(total.clone()).tolist()
                self.observer.on_pause(self.learner.shown(), self._state(replace(at, loss=loss, losses=losses)))
        loss, losses = self.team.sum(total).tolist()
        return replace(at, loss=loss, losses=losses)

    def _may_pause(self, step: int, left: int) -> bool:
        """Not where a team that has grown meanwhile would find fewer patches than it has members, nor where nothing is left."""
        due = self.pause_steps > 0 and step % self.pause_steps == 0
        return due and left * self.team.size >= self.team.most

    def _step(self, at: Place, columns: dict[str, Tensor]) -> Tensor:
        """(2,): the loss of one step, and 1."""
        # nets that draw noise draw the same after a restart
        torch.manual_seed(hash((self.run.seed, at.attempt, at.epoch, at.step, self.team.rank)) & 0x7FFFFFFF)
        progress = min((at.epoch + at.step / self.steps) / self.run.epochs, 1.0)
        parts = train_step(self.learner, augmented(columns, self.run, self.task), progress)
        self.observer.on_step(at.attempt, at.epoch, at.step, parts)
        return torch.stack([parts["loss"], parts["loss"].new_ones(())]).double()

    def _after(self, place: Place, measured: Mapping[str, float]) -> Place:
        """Where the training stands after an epoch with these measurements."""
        better = measured["validation_loss"] < place.best
        stale = 0 if better else place.stale + 1
        ends = place.epoch + 1 == self.run.epochs or (self.run.patience and stale == self.run.patience)
        again = bool(measured["astray"]) and place.attempt < self.run.restarts
        return Place(
            attempt=place.attempt,
            epoch=place.epoch + 1,
            best=min(place.best, measured["validation_loss"]),
            stale=stale,
            end="" if not ends else "astray" if again else "finished",
        )

    def _keep(
        self, shown: nn.Module, measured: dict[str, float], place: Place
    ) -> tuple[nn.Module, Mapping[str, float]]:
        """The net to keep and its measurements: the newest, or with patience the best so far."""
        if not self.run.patience:
            return shown, measured
        if place.stale == 0:
            weights = {name: value.detach().cpu().clone() for name, value in shown.state_dict().items()}
            self.best = {"weights": weights, "measured": dict(measured)}
        kept = Learner(replace(self.run, average=0, compile=False), self.task, Team(device=self.team.device), 0).bare
        kept.load_state_dict(self.best["weights"])
        return kept, self.best["measured"]

    def _state(self, place: Place) -> dict[str, Any]:
        return {"place": asdict(place), "learner": self.learner.state(), "best": self.best}
