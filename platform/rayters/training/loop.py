"""The training loop. It knows no cluster: batches come from a callable, news go to an observer, a team averages.

attempt 0: epoch 0, 1, ... last -> the sentinel looks at the agreement with the annotators -> astray? -> attempt 1, a new seed
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rayters.networks.task import Task
from rayters.training.device import Arrays, on_device
from rayters.training.model import build_net
from rayters.training.run import Run
from rayters.training.step import augmented, train_step
from rayters.training.team import Team
from rayters.training.validation import validate

Batches = Callable[[int, int], Iterable[Arrays]]
"""(epoch, first batch) -> this member's share of the batches of that epoch, from the first batch on."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What the loop reads: training batches by epoch, and the validation split, the same every time."""

    steps: int  # batches per epoch, the same for every member of the team
    train: Batches
    validation: Callable[[], Iterable[Arrays]]


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """News of one epoch. ``measured`` are means over the team; ``state`` resumes the training after this epoch."""

    attempt: int
    epoch: int
    measured: Mapping[str, float]
    net: nn.Module
    state: Mapping[str, Any]


class Observer(Protocol):
    """Who wants to know how the training goes."""

    def on_step(self, attempt: int, epoch: int, step: int, parts: Mapping[str, Tensor]) -> None:
        """After every step; ``parts`` stay on the device unless somebody looks."""

    def on_epoch(self, epoch: Epoch) -> None:
        """After every epoch, on every member of the team."""


def fit(
    run: Run, task: Task, stream: Stream, observer: Observer, *, team: Team, state: Mapping[str, Any] | None = None
) -> Epoch:
    """Trains to the end, from the beginning or from the ``state`` of an earlier epoch, and returns the last epoch's news."""
    attempt = int(state["attempt"]) if state else 0
    if state and state["astray"]:
        attempt, state = attempt + 1, None
    while True:
        last = _attempt(run, task, stream, observer, team, attempt, state)
        if not last.state["astray"] or attempt == run.restarts:
            return last
        attempt, state = attempt + 1, None


def is_finished(run: Run, state: Mapping[str, Any]) -> bool:
    """True when ``fit`` would have nothing left to do from this state."""
    return bool(state["epoch"] + 1 == run.epochs and (not state["astray"] or state["attempt"] >= run.restarts))


def _attempt(
    run: Run, task: Task, stream: Stream, observer: Observer, team: Team, attempt: int, state: Mapping[str, Any] | None
) -> Epoch:
    torch.manual_seed(run.seed * 1000 + attempt)
    bare = build_net(run, task).to(team.device)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=run.learning_rate, weight_decay=run.weight_decay)
    if state:
        bare.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
    net, first = team.wrap(bare), int(state["epoch"]) + 1 if state else 0
    news: Epoch | None = None
    for epoch in range(first, run.epochs):
        loss = _epoch(run, task, stream, observer, team, net, optimizer, attempt, epoch)
        last = epoch + 1 == run.epochs
        measured = {"loss": loss, **validate(run, task, bare, stream.validation(), team=team, last=last)}
        done = {
            "attempt": attempt,
            "epoch": epoch,
            "astray": bool(measured["astray"]),
            "net": bare.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        news = Epoch(attempt=attempt, epoch=epoch, measured=measured, net=bare, state=done)
        observer.on_epoch(news)
    assert news is not None, "a finished training has nothing left to do"
    return news


def _epoch(
    run: Run,
    task: Task,
    stream: Stream,
    observer: Observer,
    team: Team,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    attempt: int,
    epoch: int,
) -> float:
    """One epoch; returns the mean loss over its steps and the team."""
    net.train()
    total = torch.zeros(2, device=team.device)
    for step, columns in enumerate(on_device(stream.train(epoch, 0), team.device)):
        torch.manual_seed(
            hash((run.seed, attempt, epoch, step, team.rank)) & 0x7FFFFFFF
        )  # resumable noise for nets that sample
        progress = (epoch + step / stream.steps) / run.epochs
        parts = train_step(run, net, optimizer, augmented(columns, run, task), progress)
        total += torch.stack([parts["loss"], parts["loss"].new_ones(())])
        observer.on_step(attempt, epoch, step, parts)
        if step + 1 == stream.steps:
            break
    summed, steps = team.sum(total).tolist()
    return float(summed / max(steps, 1))
