"""How good a trained model is, and how well it understood the annotators; measured on the test split.

Shapes: A annotators, K classes. confusion[a, i, j] = P(annotator a writes i | truth j), sums to 1 over i.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayters.inference.maps import most_probable
from rayters.inference.whole import SeenCase
from rayters.metrics.confusion_error import (
    confusion_rmse,
    count_confusion,
    rank_correlation,
    reliability,
)
from rayters.metrics.overlap import dice, dice_per_annotator
from rayters.training.model import Model

LEAST_RANKED = 3  # annotators; the ranking of two is a coin
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What a model was found to be worth.

    dice: (N,) per case, mean over the foreground classes, against the reference; None without one.
    annotator_dice: (N, A) the same against each annotator, NaN where one drew nothing.
    estimated: (A, K, K) confusions as the model sees them, column j where it believes j: what there is without a reference.
    conditional: (A, K, K) its confusions again, column j over the pixels whose reference is j; None without a reference.
    true: (A, K, K) counted between the labels and the reference, or None.
    learnt: whether the confusions are the model's own, or counted between the labels and its prediction.
    """

    method: str
    dice: Floats | None
    annotator_dice: Floats
    estimated: Floats
    conditional: Floats | None
    true: Floats | None
    learnt: bool

    @property
    def confusion_error(self) -> float | None:
        """RMSE of the confusions on the pixels of each true class, averaged over annotators; None without a reference."""
        if self.true is None or self.conditional is None:
            return None
        return confusion_rmse(self.conditional, self.true)

    @property
    def estimated_reliability(self) -> Floats:
        """(A,) mean over classes of P(writes j | truth j), as the model sees it."""
        return reliability(self.estimated)

    @property
    def true_reliability(self) -> Floats | None:
        """(A,) the same against the reference."""
        return None if self.true is None else reliability(self.true)

    @property
    def ranking(self) -> float | None:
        """Spearman's correlation of the two reliabilities; None without a reference, with fewer than three annotators or where one
        side ranks them all alike."""
        true = self.true_reliability
        if true is None or len(true) < LEAST_RANKED:
            return None
        found = rank_correlation(self.estimated_reliability, true)
        return None if np.isnan(found) else found


def assess(model: Model, cases: Iterable[SeenCase]) -> Assessment:
    """Measures a model on cases that it has seen whole; maps are dropped as they come."""
    classes = len(model.classes)
    overlap, by_annotator, told, written, estimates, true = [], [], [], [], [], []
    for seen in cases:
        predicted = most_probable(seen.posterior)
        by_annotator.append(dice_per_annotator(predicted, seen.labels, classes=classes).mean(axis=1))
        counted = count_confusion(seen.labels[None], predicted[None], classes=classes).counts
        told.append(seen.written is not None)
        written.append(counted.astype(np.float64) if seen.written is None else seen.written)
        if seen.estimate is not None:
            estimates.append(seen.estimate)
        if seen.reference is not None:
            overlap.append(dice(predicted, seen.reference, classes=classes).mean())
            true.append(count_confusion(seen.labels[None], seen.reference[None], classes=classes))
    estimated = _columns(sum(written[1:], written[0]))
    # a counted confusion is one matrix for all pixels: over the pixels of a true class it is the same
    own = sum(estimates[1:], estimates[0]).confusion if estimates else estimated
    return Assessment(
        method=type(model.run.method).__name__,
        dice=np.array(overlap) if overlap else None,
        annotator_dice=np.array(by_annotator),
        estimated=estimated,
        conditional=own if true else None,
        true=sum(true[1:], true[0]).confusion if true else None,
        learnt=any(told),
    )


def _columns(mass: Floats) -> Floats:
    """Pixels (A, K, K) -> confusions; NaN in the column of a class that was never believed."""
    total = mass.sum(1, keepdims=True)
    return np.where(total > 0, mass / np.where(total > 0, total, 1), np.nan)
