"""How good a trained model is, and how well it understood the annotators; measured on the test split.

Shapes: A annotators, K classes. confusion[a, i, j] = P(annotator a writes i | truth j), sums to 1 over i.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casebook import IGNORE
from rayters.inference.maps import most_probable
from rayters.inference.whole import SeenCase
from rayters.metrics.confusion_error import confusion_rmse, count_confusion, reliability
from rayters.metrics.overlap import dice
from rayters.training.model import Model

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What a model was found to be worth.

    dice: (N,) per case, mean over the foreground classes, against the reference; None without one.
    annotator_dice: (N, A) the same against each annotator, NaN where one drew nothing.
    estimated: (A, K, K) confusions as the model sees them; true: the same against the reference, or None.
    learnt: whether ``estimated`` is the model's own, or counted between the labels and its prediction.
    """

    method: str
    dice: Floats | None
    annotator_dice: Floats
    estimated: Floats
    true: Floats | None
    learnt: bool

    @property
    def confusion_error(self) -> float | None:
        """RMSE of the confusions, averaged over annotators; None without a reference."""
        return None if self.true is None else confusion_rmse(self.estimated, self.true)

    @property
    def estimated_reliability(self) -> Floats:
        """(A,) mean over classes of P(writes j | truth j), as the model sees it."""
        return reliability(self.estimated)

    @property
    def true_reliability(self) -> Floats | None:
        """(A,) the same against the reference."""
        return None if self.true is None else reliability(self.true)


def assess(model: Model, cases: Iterable[SeenCase]) -> Assessment:
    """Measures a model on cases that it has seen whole; maps are dropped as they come."""
    classes = len(model.classes)
    overlap, by_annotator, learnt, true = [], [], [], []
    for seen in cases:
        predicted = most_probable(seen.posterior)
        by_annotator.append([_dice_if_drawn(predicted, layer, classes) for layer in seen.labels])
        estimate = (
            count_confusion(seen.labels[None], predicted[None], classes=classes).counts
            if seen.written is None
            else seen.written
        )
        learnt.append(estimate.astype(np.float64))
        if seen.reference is not None:
            overlap.append(dice(predicted, seen.reference, classes=classes).mean())
            true.append(count_confusion(seen.labels[None], seen.reference[None], classes=classes))
    return Assessment(
        method=type(model.run.method).__name__,
        dice=np.array(overlap) if overlap else None,
        annotator_dice=np.array(by_annotator),
        estimated=_columns(sum(learnt[1:], learnt[0])),
        true=sum(true[1:], true[0]).confusion if true else None,
        learnt=model.run.method.needs_identity,
    )


def _dice_if_drawn(predicted: NDArray[np.uint8], layer: NDArray[np.uint8], classes: int) -> float:
    return float("nan") if (layer == IGNORE).all() else float(dice(predicted, layer, classes=classes).mean())


def _columns(mass: Floats) -> Floats:
    """Pixels (A, K, K) -> confusions; NaN in the column of a class that was never believed."""
    total = mass.sum(1, keepdims=True)
    return np.where(total > 0, mass / np.where(total > 0, total, 1), np.nan)
