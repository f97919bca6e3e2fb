"""A search: generations of candidates, each trained from several seeds and counted as one.

    generation 0   every method as it comes
    generation 1   ``at_once`` candidates, proposed from what generation 0 measured
    generation 2   ...                     from generations 0 and 1

A generation waits for its slowest training, so that what is proposed never depends on who was first, nor on how many machines there are.
Results are kept one by one by the sweep, and proposals are a pure function of them: a search that was killed is started again, finds
its results, proposes the same candidates, and ends with the same ranking.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rayters.tuning.propose import Measured, Objective, Sampler, propose
from rayters.tuning.space import Candidate, Space

Result = Mapping[str, Any]
Halved = Literal["none", "seeds", "epochs"]
Trials = Sequence[Mapping[str, Any]]
Sweep = Callable[[Trials, bool], Sequence[Result | None]]
"""(trials, {"candidate", "seed"} each; whether they may be stopped early) -> the result of each, {"stopped": {"epoch", "score"}} of one
that was stopped, None for one that died; those known already are not run again."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides the candidates.

    seeds: trainings per candidate. at_once: candidates of a generation. halving, of candidates that are not defaults:
    "seeds": those in the lower half of all first seeds are not trained from the others; "epochs": besides, ASHA ends the first trainings
    of a generation that are behind the others of it, which depends on who came first: two searches then need not agree.

    Raises:
        ValueError: when a number is below one, or there is no objective.
    """

    space: Space
    seeds: int = 3
    at_once: int = 4
    sampler: Sampler = "tpe"
    objectives: tuple[Objective, ...] = ("dice",)
    halving: Halved = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.seeds, self.at_once) < 1 or not self.objectives:
            raise ValueError("a search needs at least one seed, one candidate at once, and one objective")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a search ends; a generation that has begun is finished. trials: candidates beside the defaults; None: no limit."""

    trials: int = 20
    hours: float | None = None  # wall time of this command
    gpu_hours: float | None = None  # over all trainings, those before a resume too
    gpus: float = 0.0  # of one training


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One candidate. results: one per seed that was trained; number: in which order it was proposed."""

    number: int
    candidate: Candidate
    results: tuple[Result, ...]
    state: Literal["whole", "dropped", "failed"]
    is_default: bool = False
    why: str = ""
    stopped: tuple[int, float] | None = None  # epochs and score, where it was stopped early

    def mean(self, figure: str) -> float:
        """Over seeds; NaN without one."""
        return float(np.mean([each[figure] for each in self.results])) if self.results else float("nan")

    def measured(self) -> Measured:
        """For whoever proposes: figures of the criterion only."""
        figures = {name: self.mean(name) for name in ("dice", "ece", "seconds")} if self.results else {}
        return Measured(candidate=self.candidate, figures=figures, stopped=self.stopped)


def search(
    plan: Plan, budget: Budget, sweep: Sweep, *, now: Callable[[], float] = time.monotonic
) -> Iterator[list[Contender]]:
    """All contenders so far, best first, after every generation."""
    found: list[Contender] = []
    started, defaults = now(), plan.space.defaults()
    candidates = defaults
    while candidates:
        found += _generation(plan, candidates, found, sweep, is_default=candidates is defaults)
        yield ranked(found)
        left = budget.trials - (len(found) - len(defaults))
        if left < 1 or _is_spent(budget, found, now() - started):
            return
        candidates = propose(
            plan.space,
            [each.measured() for each in found],
            seed=plan.seed,
            number=len(found),
            count=min(plan.at_once, left),
            sampler=plan.sampler,
            objectives=plan.objectives,
        )


def ranked(found: Sequence[Contender]) -> list[Contender]:
    """Best first by Dice with the noisy labels, mean over seeds; then those not trained from every seed, then those that failed."""
    order = {"whole": 0, "dropped": 1, "failed": 2}
    return sorted(found, key=lambda each: (order[each.state], -each.mean("dice") if each.results else 0.0, each.number))


def _generation(
    plan: Plan, candidates: Sequence[Candidate], before: Sequence[Contender], sweep: Sweep, *, is_default: bool
) -> list[Contender]:
    if plan.halving == "none" or is_default or (plan.halving == "seeds" and plan.seeds == 1):
        results = _train(candidates, range(plan.seeds), sweep)
        kept = [True] * len(candidates)
    else:
        results = _train(candidates, range(1), sweep, may_stop=plan.halving == "epochs")
        kept = (
            _upper_half(results, before) if plan.seeds > 1 else ["stopped" not in (first[0] or {}) for first in results]
        )
        promising = [each for each, keep in zip(candidates, kept, strict=True) if keep and plan.seeds > 1]
        rest = iter(_train(promising, range(1, plan.seeds), sweep))
        results = [first + next(rest, []) if keep else first for first, keep in zip(results, kept, strict=True)]
    return [
        _contender(len(before) + index, candidate, result, keep, is_default)
        for index, (candidate, result, keep) in enumerate(zip(candidates, results, kept, strict=True))
    ]


def _train(
    candidates: Sequence[Candidate], seeds: range, sweep: Sweep, *, may_stop: bool = False
) -> list[list[Result | None]]:
    """Per candidate its results, one per seed."""
    trials = [{"candidate": dict(candidate), "seed": seed} for candidate in candidates for seed in seeds]
    results = list(sweep(trials, may_stop))
    return [results[first : first + len(seeds)] for first in range(0, len(results), max(len(seeds), 1))]


def _upper_half(firsts: Sequence[Sequence[Result | None]], before: Sequence[Contender]) -> list[bool]:
    """Whose first seed reaches the median of all first seeds, those before and these."""
    scores = [float(first[0]["dice"]) if first[0] and "dice" in first[0] else -np.inf for first in firsts]
    known = [float(each.results[0]["dice"]) for each in before if each.results]
    median = np.median([score for score in scores + known if np.isfinite(score)] or [0.0])
    return [score >= median for score in scores]


def _contender(
    number: int, candidate: Candidate, results: Sequence[Result | None], kept: bool, is_default: bool
) -> Contender:
    """One seed that failed fails its candidate: a mean over the lucky ones would not be one over seeds."""
    stops = [(each["stopped"]["epoch"], each["stopped"]["score"]) for each in results if each and "stopped" in each]
    failures = [
        "a training died" if each is None else str(each["failed"]) for each in results if not each or "failed" in each
    ]
    return Contender(
        number=number,
        candidate=candidate,
        results=() if failures or stops else tuple(each for each in results if each),
        state="failed" if failures else "whole" if kept else "dropped",
        is_default=is_default,
        why=failures[0] if failures else f"behind the others after {stops[0][0]} epochs" if stops else "",
        stopped=stops[0] if stops else None,
    )


def _is_spent(budget: Budget, found: Sequence[Contender], seconds: float) -> bool:
    on_gpus = sum(result["seconds"] for each in found for result in each.results) * budget.gpus
    limits = ((budget.hours, seconds), (budget.gpu_hours, on_gpus))
    return any(limit is not None and used >= limit * 3600 for limit, used in limits)
