"""Who among the annotators errs, how, and where: each against the consensus of a model, and against the others.

Shapes: A annotators, K classes, S spatial axes of a case.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from casebook import IGNORE
from rayters.annotators.agreement import pair_counts, pairwise_dice
from rayters.metrics.confusion_error import ConfusionCounts, count_confusion, rank_correlation, reliability
from rayters.metrics.overlap import dice_of, overlap_counts
from rayters.reports.assessment import LEAST_RANKED
from rayters.reports.scores import Compared

NEAR_PX = 3.0  # an outline's neighbourhood
Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]
PLACES = ("along outlines", "inside objects", "in the background")


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """One annotator, as a model sees it; figures are pooled over the cases.

    confusion: (K, K) P(writes i | consensus j). true: the same against the reference, or None. before: mean Dice with the other
    annotators; after: Dice with the consensus. places: share of the disagreeing pixels in each of PLACES. case: where it differs most.
    """

    name: str
    cases: int
    reliability: float
    true_reliability: float | None
    confusion: Floats
    before: float
    after: float
    places: tuple[float, ...]
    case: str
    case_dice: float


@dataclass(kw_only=True)
class _Sums:
    """What is added up over cases."""

    counted: NDArray[np.int64]
    true: NDArray[np.int64]
    overlap: NDArray[np.int64]
    pairs: NDArray[np.int64]
    places: Floats
    dice: list[tuple[float, str, int]] = field(default_factory=list)


class AnnotatorReport:
    """Fed with one case after the other; nothing of a case is kept."""

    def __init__(self, annotators: Sequence[str], classes: int, model: str) -> None:
        self.annotators, self.classes, self.model = tuple(annotators), classes, model
        a, k = len(self.annotators), classes
        self.sums = _Sums(
            counted=np.zeros((a, k, k), np.int64),
            true=np.zeros((a, k, k), np.int64),
            overlap=np.zeros((a, k - 1, 3), np.int64),
            pairs=np.zeros((a, a, k, k), np.int64),
            places=np.zeros((a, len(PLACES))),
        )

    def add(self, seen: Compared) -> None:
        """Counts one case, if the model saw it and somebody drew on it."""
        if self.model not in seen.labels or not seen.annotators:
            return
        consensus, sums = seen.labels[self.model], self.sums
        nobody = np.full(consensus.shape, IGNORE, np.uint8)
        layers = np.stack([seen.annotators.get(name, nobody) for name in self.annotators])
        sums.counted += count_confusion(layers[None], consensus[None], classes=self.classes).counts
        if seen.reference is not None:
            sums.true += count_confusion(layers[None], seen.reference[None], classes=self.classes).counts
        sums.pairs += pair_counts(layers, classes=self.classes)
        where = _places(consensus)
        for index, layer in enumerate(layers):
            if (layer != IGNORE).any():
                self._add_one(index, layer, consensus, where, seen.row.case)

    def _add_one(self, index: int, layer: Labels, consensus: Labels, where: NDArray[np.int64], case: str) -> None:
        counts = overlap_counts(layer, consensus, classes=self.classes)
        self.sums.overlap[index] += counts
        apart = (layer != consensus) & (layer != IGNORE) & (consensus != IGNORE)
        self.sums.places[index] += np.bincount(where[apart], minlength=len(PLACES))
        self.sums.dice.append((float(dice_of(counts).mean()), case, index))

    def portraits(self) -> list[Portrait]:
        """Of everyone who drew somewhere, most reliable first."""
        sums = self.sums
        seen = ConfusionCounts(counts=sums.counted).confusion
        true = reliability(ConfusionCounts(counts=sums.true).confusion)
        found, between = [], pairwise_dice(sums.pairs)
        np.fill_diagonal(between, np.nan)
        for index, (name, estimated) in enumerate(zip(self.annotators, reliability(seen), strict=True)):
            mine = sorted((dice, case) for dice, case, who in sums.dice if who == index)
            if not mine:
                continue
            others = between[index][np.isfinite(between[index])]
            found.append(
                Portrait(
                    name=name,
                    cases=len(mine),
                    reliability=float(estimated),
                    true_reliability=float(true[index]) if sums.true.any() else None,
                    confusion=seen[index],
                    before=float(others.mean()) if len(others) else float("nan"),
                    after=float(dice_of(sums.overlap[index]).mean()),
                    places=tuple((sums.places[index] / max(sums.places[index].sum(), 1)).tolist()),
                    case=mine[0][1],
                    case_dice=mine[0][0],
                )
            )
        return sorted(found, key=lambda portrait: -np.nan_to_num(portrait.reliability))


def ranking(portraits: Sequence[Portrait]) -> float:
    """Spearman's correlation of the reliability that a model sees with that against the reference, in [-1, 1]; NaN without a reference
    or with fewer than three annotators.
    """
    known = [p for p in portraits if p.true_reliability is not None]
    if len(known) < LEAST_RANKED:
        return float("nan")
    estimated = np.array([p.reliability for p in known])
    return rank_correlation(estimated, np.array([p.true_reliability for p in known], dtype=np.float64))


def _places(consensus: Labels) -> NDArray[np.int64]:
    """(*S) index into PLACES of every pixel."""
    edge = np.zeros(consensus.shape, bool)
    for axis in range(consensus.ndim):
        change = np.diff(consensus, axis=axis) != 0
        ahead = tuple(slice(1, None) if i == axis else slice(None) for i in range(consensus.ndim))
        behind = tuple(slice(None, -1) if i == axis else slice(None) for i in range(consensus.ndim))
        edge[ahead] |= change
        edge[behind] |= change
    where = np.where(consensus > 0, 1, 2)
    if edge.any():
        where[distance_transform_edt(~edge) <= NEAR_PX] = 0
    return where
