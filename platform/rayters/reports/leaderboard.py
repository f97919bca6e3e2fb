"""The leaderboard of a search: which candidate agrees best with the annotators, by how much, and what made the difference.

An entry is one candidate with all of its seeds. Ranking: by the criterion, noisy validation Dice. Tests: on the cases of the test split,
which had no part in the choice, each entry against the best baseline (the best method as it comes), Wilcoxon with Holm's correction.

Sources: permutation importance, Breiman, Machine Learning 45, 2001; Wilcoxon and Holm as in ``statistics``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from casebook import Cohort
from rayters.reports.statistics import by_group, holm, paired_p

State = Literal["whole", "dropped", "failed"]
USUAL = (("gaze", "FixedGaze"),)


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One training. dice, ece: against the annotators on validation; noisy, reference: Dice by test case; curve: agreement by epoch."""

    dice: float
    ece: float
    seconds: float
    noisy: Mapping[str, float] = field(default_factory=dict)
    reference: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[float] = ()
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One candidate. number: in which order it was proposed; candidate: its parameters by name; why: of one that failed."""

    number: int
    candidate: Mapping[str, Any]
    seeds: tuple[Seed, ...]
    state: State = "whole"
    is_default: bool = False
    why: str = ""

    @property
    def title(self) -> str:
        """As tables and pictures call it."""
        return f"{self.candidate['method']}, {'as it comes' if self.is_default else f'no. {self.number}'}"

    @property
    def changed(self) -> str:
        """Its parameters in short, but the method, and the gaze where it is the usual one."""
        told = {name: v for name, v in self.candidate.items() if (name, v) not in USUAL and name != "method"}
        return ", ".join(f"{name.split('.')[-1].replace('_', ' ')} {short(v)}" for name, v in told.items())

    def mean(self, figure: Literal["dice", "ece", "seconds"]) -> float:
        """Over seeds; NaN without one."""
        return float(np.mean([getattr(each, figure) for each in self.seeds])) if self.seeds else float("nan")

    def sd(self, figure: Literal["dice", "ece", "seconds"]) -> float:
        """Over seeds; NaN with fewer than two."""
        return float(np.std([getattr(s, figure) for s in self.seeds], ddof=1)) if len(self.seeds) > 1 else float("nan")

    def by_case(self, rater: Literal["noisy", "reference"]) -> dict[str, float]:
        """Dice of each test case, mean over seeds."""
        found = [(case, value) for each in self.seeds for case, value in getattr(each, rater).items()]
        return by_group([value for _, value in found], [case for case, _ in found])

    def on_test(self, rater: Literal["noisy", "reference"]) -> float:
        """Mean over test cases; NaN without one."""
        found = list(self.by_case(rater).values())
        return float(np.mean(found)) if found else float("nan")


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """A search as it ended. entries: best first by the criterion. facts: what the model card says of data and annotators, in order."""

    cohort: Cohort
    entries: tuple[Entry, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    noise: Sequence[tuple[str, float]] = ()  # annotator, mean Dice with the others

    @property
    def chosen(self) -> Entry:
        """The best by the criterion.

        Raises:
            ValueError: when no candidate was trained from every seed.
        """
        if not self.entries or self.entries[0].state != "whole":
            raise ValueError("no candidate of this search was trained from every seed: nothing can be chosen")
        return self.entries[0]

    @property
    def baseline(self) -> Entry | None:
        """The best method as it comes; None when all of them failed."""
        return next((each for each in self.entries if each.is_default and each.state == "whole"), None)

    def p_values(self, rater: Literal["noisy", "reference"]) -> dict[int, float]:
        """Entry's number -> p against the best baseline over groups of the test split (patients), corrected; NaN where there is no test."""
        group = {row.case: row.group for row in self.cohort.cases}
        others = [each for each in self.entries if each is not self.baseline and each.seeds]
        raw = [self._p(each, rater, group) for each in others]
        return {each.number: p for each, p in zip(others, holm(raw), strict=True)}

    def _p(self, entry: Entry, rater: Literal["noisy", "reference"], group: Mapping[str, str]) -> float:
        if self.baseline is None:
            return float("nan")
        ours, theirs = entry.by_case(rater), self.baseline.by_case(rater)
        shared = sorted(ours.keys() & theirs.keys())
        apart = by_group([ours[case] - theirs[case] for case in shared], [group[case] for case in shared])
        return paired_p(np.array(list(apart.values())))

    def parameters(self) -> list[str]:
        """All that differs between entries, method first."""
        names = dict.fromkeys(name for each in self.entries for name in each.candidate)
        return [name for name in names if len({str(each.candidate.get(name)) for each in self.entries}) > 1]

    def importance(self, *, repeats: int = 20, seed: int = 0) -> list[tuple[str, float]]:
        """How much worse a forest predicts the criterion when one parameter is shuffled, as a share of all; largest first.

        A parameter that an entry does not have is a value of its own. [] with fewer than six entries or nothing that differs.
        """
        seen = [each for each in self.entries if each.seeds]
        names = self.parameters()
        if len(seen) < 6 or not names:
            return []
        table = np.array([[_code(each.candidate.get(name), name, seen) for name in names] for each in seen])
        worth = np.array([each.mean("dice") for each in seen])
        forest = RandomForestRegressor(n_estimators=100, random_state=seed).fit(table, worth)
        found = permutation_importance(forest, table, worth, n_repeats=repeats, random_state=seed).importances_mean
        found = found.clip(0)
        shares = found / found.sum() if found.sum() > 0 else found
        return sorted(zip(names, shares.tolist(), strict=True), key=lambda each: -each[1])


def _code(value: Any, name: str, entries: Sequence[Entry]) -> float:
    """A number for a forest: numbers as they are, words by their order, -1 for what an entry does not have."""
    if value is None:
        return -1.0
    if isinstance(value, int | float):
        return float(value)
    return float(sorted({str(each.candidate[name]) for each in entries if name in each.candidate}).index(str(value)))


def short(value: Any) -> str:
    """A value as it stands in a table.

    >>> short(0.123456), short("pixel"), short(2)
    ('0.123', 'pixel', '2')
    """
    return f"{value:.3g}" if isinstance(value, float) else str(value)
