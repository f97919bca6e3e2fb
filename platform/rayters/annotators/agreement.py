"""Do annotators agree, and which pairs should a person look at?

Shapes: (A, *S) uint8 label layers. A pair is compared where both looked; IGNORE never counts. NaN where there is
nothing to compare.

Sources: Cohen, Educational and Psychological Measurement 20, 1960. Fleiss, Psychological Bulletin 76, 1971, in the form
that lets every pixel have its own number of annotators.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from casebook.labels import IGNORE

Labels = NDArray[np.uint8]
Floats = NDArray[np.float64]


def pair_counts(layers: Labels, *, classes: int) -> NDArray[np.int64]:
    """How often annotator a wrote i while b wrote j: (A, A, K, K). Counts of several cases add up."""
    counts = np.zeros((len(layers), len(layers), classes, classes), dtype=np.int64)
    for a in range(len(layers)):
        for b in range(a, len(layers)):
            both = (layers[a] != IGNORE) & (layers[b] != IGNORE)
            joint = layers[a][both].astype(np.int64) * classes + layers[b][both]
            counts[a, b] = np.bincount(joint, minlength=classes**2).reshape(classes, classes)
            counts[b, a] = counts[a, b].T
    return counts


def pairwise_dice(counts: NDArray[np.int64]) -> Floats:
    """Dice of each pair, mean over the foreground classes that either of the two wrote: (A, A); 1 where neither wrote
    any.
    """
    both = np.diagonal(counts, axis1=2, axis2=3)[..., 1:].astype(np.float64)
    sizes = (counts.sum(axis=2) + counts.sum(axis=3))[..., 1:]
    dice = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 0).sum(axis=-1) / np.maximum(
        (sizes > 0).sum(axis=-1), 1
    )
    compared = counts.sum(axis=(2, 3)) > 0
    return np.where(compared, np.where((sizes > 0).any(axis=-1), dice, 1.0), np.nan)


def cohen_kappa(counts: NDArray[np.int64]) -> Floats:
    """Agreement of each pair beyond chance: (A, A), in [-1, 1]; 1 where both wrote one class everywhere."""
    total = counts.sum(axis=(2, 3)).astype(np.float64)
    share = counts / np.maximum(total, 1)[..., None, None]
    observed = np.trace(share, axis1=2, axis2=3)
    chance = (share.sum(axis=2) * share.sum(axis=3)).sum(axis=-1)
    kappa = np.where(chance < 1, (observed - chance) / np.where(chance < 1, 1 - chance, 1), 1.0)
    return np.where(total > 0, kappa, np.nan)


def fleiss_kappa(layers: Labels, *, classes: int) -> float:
    """Agreement of all beyond chance, over the pixels that at least two looked at; NaN where there are none, 1 for
    unanimity in one class.
    """
    counts = np.stack([(layers == k).sum(axis=0).ravel() for k in range(classes)]).astype(np.float64)
    raters = counts.sum(axis=0)
    counts, raters = counts[:, raters > 1], raters[raters > 1]
    if raters.size == 0:
        return float("nan")
    observed = float(((counts * (counts - 1)).sum(axis=0) / (raters * (raters - 1))).mean())
    chance = float(((counts.sum(axis=1) / raters.sum()) ** 2).sum())
    return 1.0 if chance >= 1 else (observed - chance) / (1 - chance)


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """Two annotators, by position, and what a person should check about them."""

    pair: tuple[int, int]
    dice: float
    kappa: float
    reason: str


def suspicious_pairs(counts: NDArray[np.int64], *, copied: float = 0.995, chance: float = 0.05) -> list[Suspicion]:
    """Pairs too alike to be independent (Dice >= ``copied``), or no more alike than chance (kappa <= ``chance``).

    A pair of which one wrote no foreground is reported as such, once, and not as disagreement in style.
    """
    dice, kappa = pairwise_dice(counts), cohen_kappa(counts)
    found = []
    for a, b in combinations(range(len(counts)), 2):
        reason = _reason(counts[a, b], float(dice[a, b]), float(kappa[a, b]), copied, chance)
        if reason:
            found.append(Suspicion(pair=(a, b), dice=float(dice[a, b]), kappa=float(kappa[a, b]), reason=reason))
    return found


def _reason(counts: NDArray[np.int64], dice: float, kappa: float, copied: float, chance: float) -> str | None:
    first, second = counts[1:].sum(), counts[:, 1:].sum()
    if counts.sum() == 0 or (first == 0 and second == 0):
        return None
    if first == 0 or second == 0:
        return "one of the two marked nothing: did this annotator look? If not, its layer is IGNORE, not background"
    if dice >= copied:
        return "the two are all but identical: one file under two names, or one drawn over the other"
    if kappa <= chance:
        return "no agreement beyond chance: displaced, of another case, or with swapped classes"
    return None
