"""What a table of figures may claim: intervals, paired tests, and whether the ranking would survive other patients.

Shapes: M contenders, G groups (patients). Cases of one patient are not independent, so a patient is what is drawn and what is compared;
within a group, cases are averaged first.

Sources: bootstrap percentile intervals, Efron 1979. Wilcoxon, Biometrics Bulletin 1, 1945; Holm, Scand. J. Statistics 6, 1979. Rank
stability by bootstrap: Wiesenfarth et al., Scientific Reports 11, 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata, wilcoxon

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over groups, and where it lies with 95 % confidence; NaN bounds with fewer than two groups."""

    mean: float
    low: float
    high: float
    groups: int

    def __str__(self) -> str:
        """As it stands in a table."""
        if np.isnan(self.mean):
            return "-"
        return f"{self.mean:.3f}" if np.isnan(self.low) else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def by_group(values: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """The mean of each group over its finite values; groups without one are left out.

    Whoever takes the mean of distances says beside it how many were infinite, as reports/scores.py does with 'missed'.
    """
    finite: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        if np.isfinite(value):
            finite.setdefault(group, []).append(value)
    return {group: float(np.mean(each)) for group, each in finite.items()}


def interval(values: Sequence[float], groups: Sequence[str], *, draws: int = 2000, seed: int = 0) -> Interval:
    """Mean over groups with its percentile interval: groups are drawn with replacement, ``draws`` times."""
    means = np.array(list(by_group(values, groups).values()))
    if len(means) < 2:
        mean = float(means.mean()) if len(means) else float("nan")
        return Interval(mean=mean, low=float("nan"), high=float("nan"), groups=len(means))
    drawn = np.random.default_rng(seed).integers(len(means), size=(draws, len(means)))
    low, high = np.percentile(means[drawn].mean(axis=1), (2.5, 97.5))
    return Interval(mean=float(means.mean()), low=float(low), high=float(high), groups=len(means))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two contenders on the same groups. p: of the Wilcoxon signed-rank test, corrected by Holm over all pairs of a table."""

    first: str
    second: str
    difference: float  # mean over groups of first - second
    wins: int  # groups in which the first has the higher value
    groups: int
    p: float


def compare_pairs(table: dict[str, dict[str, float]]) -> list[Comparison]:
    """Every pair of contenders. table: contender -> group -> value; groups that both have are compared."""
    names, found = list(table), []
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = sorted(table[first].keys() & table[second].keys())
            apart = np.array([table[first][g] - table[second][g] for g in shared])
            found.append(
                Comparison(
                    first=first,
                    second=second,
                    difference=float(apart.mean()) if len(apart) else float("nan"),
                    wins=int((apart > 0).sum()),
                    groups=len(apart),
                    p=paired_p(apart),
                )
            )
    corrected = holm([each.p for each in found])
    return [Comparison(**{**vars(each), "p": p}) for each, p in zip(found, corrected, strict=True)]


def paired_p(apart: Floats) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, of differences by group; 1 where nothing differs, NaN with fewer than two groups."""
    if len(apart) < 2:
        return float("nan")
    return float(wilcoxon(apart).pvalue) if np.any(apart) else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Step-down correction for several tests; NaN is not counted as one.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = [i for i in np.argsort(p) if not np.isnan(p[i])]
    corrected, worst = list(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = round(worst, 12)
    return corrected


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Would other patients rank the contenders alike? first: share of bootstrap samples in which each comes first (ties shared);
    tau: mean Kendall correlation with the ranking of all groups, in [-1, 1]."""

    first: dict[str, float]
    tau: float


def rank_stability(
    table: dict[str, dict[str, float]], *, higher_is_better: bool, draws: int = 1000, seed: int = 0
) -> Stability:
    """Over the groups that every contender has; NaN without two contenders and two groups."""
    names = list(table)
    shared = sorted(set.intersection(*(set(each) for each in table.values()))) if table else []
    if len(names) < 2 or len(shared) < 2:
        return Stability(first=dict.fromkeys(names, float("nan")), tau=float("nan"))
    values = np.array([[table[name][group] for group in shared] for name in names]) * (1 if higher_is_better else -1)
    drawn = np.random.default_rng(seed).integers(len(shared), size=(draws, len(shared)))
    means = values[:, drawn].mean(axis=2).T.round(12)  # (draws, M)
    best = means == means.max(axis=1, keepdims=True)
    first = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
    whole = rankdata(values.mean(axis=1))
    taus = [kendalltau(whole, rankdata(row)).statistic for row in means]
    tau = float(np.nanmean(taus)) if np.isfinite(taus).any() else float("nan")
    return Stability(first=dict(zip(names, first.tolist(), strict=True)), tau=tau)
