"""Which candidate next: Optuna's samplers, asked so that the answer is a pure function of (seed, number, what was measured).

A study is rebuilt from the candidates measured so far each time that it is asked, and the sampler is seeded with the number of the
candidate. So there is no state to lose: a search that was killed proposes what it would have proposed.

Sources: TPE, Bergstra et al., NeurIPS 2011; its multi-objective form, Ozaki et al., JAIR 73, 2022.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna

from rayters.tuning.space import Candidate, Space

Sampler = Literal["tpe", "random"]
Objective = Literal["dice", "ece", "seconds"]
HIGHER_IS_BETTER = {"dice": True, "ece": False, "seconds": False}
"""dice: mean over annotators and validation cases; ece: calibration error against the annotators; seconds: of one training."""

REDRAWS = 50  # of a candidate that was there already; then the space is said to be exhausted


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A candidate with the means of its figures over seeds; no figures when every training failed or was stopped.

    stopped: (epochs, Dice then) of one that was stopped early; TPE ranks such ones behind all that ended.
    """

    candidate: Candidate
    figures: Mapping[str, float]
    stopped: tuple[int, float] | None = None


def propose(
    space: Space,
    measured: Sequence[Measured],
    *,
    seed: int,
    number: int,
    count: int = 1,
    sampler: Sampler = "tpe",
    objectives: Sequence[Objective] = ("dice",),
) -> list[dict[str, Any]]:
    """Up to ``count`` candidates that were not measured yet, to be run side by side; fewer when the space has no more.

    number: how many candidates there were before, which decides the sampler's seed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seen, found = [dict(each.candidate) for each in measured], []
    study = _study(space, measured, objectives)
    for index in range(count):
        for redraw in range(REDRAWS):
            kind: Sampler = sampler if redraw == 0 else "random"  # TPE would insist on what it likes best
            study.sampler = _sampler(kind, hash((seed, number + index, redraw)) % 2**31)
            candidate = space.draw(study.ask())
            if candidate not in seen:
                found.append(candidate)
                seen.append(candidate)
                break
        else:
            break
    return found


def _sampler(kind: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # grouping and the liar are marked experimental
        # the liar keeps those that run side by side apart; grouping knows that a parameter belongs to its method
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=8, multivariate=True, group=True, constant_liar=True
        )


def _study(space: Space, measured: Sequence[Measured], objectives: Sequence[Objective]) -> optuna.Study:
    up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    study = optuna.create_study(directions=[up if HIGHER_IS_BETTER[each] else down for each in objectives])
    for each in measured:
        values = [each.figures[name] for name in objectives] if each.figures else None
        pruned = each.stopped if tuple(objectives) == ("dice",) else None  # Optuna prunes with one objective only
        states = optuna.trial.TrialState
        decided = _decided(space, each.candidate)
        study.add_trial(
            optuna.trial.create_trial(
                state=states.COMPLETE if values else states.PRUNED if pruned else states.FAIL,
                values=values,
                intermediate_values={pruned[0]: pruned[1]} if pruned else {},
                params={name: each.candidate[name] for name in decided},
                distributions=decided,
            )
        )
    return study


def _decided(space: Space, candidate: Candidate) -> dict[str, optuna.distributions.BaseDistribution]:
    """The distributions of what ``space.draw`` would have drawn for this candidate, and no others."""
    asked = _Asked(candidate)
    space.draw(asked)
    return asked.distributions


class _Asked:
    """A trial that answers with a known candidate, and notes what it was asked."""

    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {}

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The candidate's."""
        self.distributions[name] = optuna.distributions.FloatDistribution(low, high, log=log)
        return float(self.candidate[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The candidate's."""
        self.distributions[name] = optuna.distributions.CategoricalDistribution(tuple(choices))
        return self.candidate[name]
