"""Dice and IoU of the foreground, per class.

Shapes: (*S) integer label maps, A annotators, K classes with 0 the background, S any number of axes.

Background has no part in the result: with it, an empty prediction on a small blob would score about .5. A class that is
absent from both maps scores 1: nothing was there, nothing was found. Pixels where either map is IGNORE do not count.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from casebook.labels import IGNORE

Labels = NDArray[np.integer]
Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def overlap_counts(prediction: Labels, reference: Labels, *, classes: int) -> Counts:
    """True positives, false positives, false negatives of each foreground class: (K-1, 3). Counts of several pictures
    add up.

    Raises:
        ValueError: when the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction {prediction.shape} and reference {reference.shape} differ in shape: read both at one level"
        )
    counted = (prediction != IGNORE) & (reference != IGNORE)
    p, r = prediction[counted], reference[counted]
    hits = [((p == k) & (r == k)).sum() for k in range(1, classes)]
    return np.array([(h, (p == k).sum() - h, (r == k).sum() - h) for k, h in enumerate(hits, start=1)], dtype=np.int64)


def dice_of(counts: Counts) -> Floats:
    """2 TP / (2 TP + FP + FN), (K-1,); 1 for a class absent from both."""
    hits, wrong = counts[..., 0], counts[..., 1] + counts[..., 2]
    return np.where(hits + wrong > 0, 2 * hits / np.maximum(2 * hits + wrong, 1), 1.0)


def iou_of(counts: Counts) -> Floats:
    """TP / (TP + FP + FN), (K-1,); 1 for a class absent from both."""
    hits, wrong = counts[..., 0], counts[..., 1] + counts[..., 2]
    return np.where(hits + wrong > 0, hits / np.maximum(hits + wrong, 1), 1.0)


def dice(prediction: Labels, reference: Labels, *, classes: int) -> Floats:
    """Dice of each foreground class in one picture: (K-1,)."""
    return dice_of(overlap_counts(prediction, reference, classes=classes))


def iou(prediction: Labels, reference: Labels, *, classes: int) -> Floats:
    """IoU (Jaccard) of each foreground class in one picture: (K-1,)."""
    return iou_of(overlap_counts(prediction, reference, classes=classes))


def dice_per_image(pairs: Iterable[tuple[Labels, Labels]], *, classes: int) -> Floats:
    """Dice of each (prediction, reference): (N, K-1). Its mean over N weighs every picture alike, whatever its
    foreground.
    """
    return np.stack([dice(prediction, reference, classes=classes) for prediction, reference in pairs])


def dice_per_annotator(prediction: Labels, labels: Labels, *, classes: int) -> Floats:
    """Dice of one prediction (*S) against the layer of each annotator, labels (A, *S): (A, K-1), in [0, 1].

    A class that neither drew scores 1; who looked nowhere, whose layer is all IGNORE, has NaN.

    Raises:
        ValueError: when prediction and layers differ in shape.
    """
    found = np.stack([dice(prediction, layer, classes=classes) for layer in labels])
    looked = (labels != IGNORE).reshape(len(labels), -1).any(axis=1)
    return np.where(looked[:, None], found, np.nan)


def dice_pooled(pairs: Iterable[tuple[Labels, Labels]], *, classes: int) -> Floats:
    """Dice over the pixels of all pictures together: (K-1,). Large objects dominate."""
    total = np.zeros((classes - 1, 3), dtype=np.int64)
    for prediction, reference in pairs:
        total += overlap_counts(prediction, reference, classes=classes)
    return dice_of(total)
