"""Several annotators' layers -> one layer, or one map of probabilities.

Shapes: (A, *S) uint8 label layers of one case, K classes, S the spatial axes. IGNORE is nobody's vote: a pixel counts
the annotators who looked at it, and one that nobody looked at stays IGNORE.
"""

import numpy as np
from numpy.typing import NDArray

from casebook.labels import IGNORE
from rayters.annotators.dawid_skene import count_patterns as count_patterns
from rayters.annotators.dawid_skene import dawid_skene as dawid_skene
from rayters.annotators.staple import spatial_staple as spatial_staple
from rayters.annotators.staple import staple as staple

Labels = NDArray[np.uint8]


def votes(layers: Labels, *, classes: int) -> NDArray[np.int64]:
    """How many annotators wrote each class: (K, *S).

    Raises:
        ValueError: when a label is neither a class nor IGNORE.
    """
    check_labels(layers, classes=classes)
    return np.stack([(layers == k).sum(axis=0) for k in range(classes)])


def majority_vote(layers: Labels, *, classes: int) -> Labels:
    """The most frequent class per pixel, (*S) uint8. A tie goes to the lowest of the tied classes: background before
    anything else.
    """
    counts = votes(layers, classes=classes)
    return np.where(counts.sum(axis=0) > 0, counts.argmax(axis=0), IGNORE).astype(np.uint8)


def mean_labels(layers: Labels, *, classes: int) -> NDArray[np.float32]:
    """The share of the annotators who looked that wrote each class: (K, *S), sums to 1 over K, and to 0 where nobody
    looked.
    """
    counts = votes(layers, classes=classes)
    return np.asarray(counts / counts.sum(axis=0).clip(min=1), dtype=np.float32)


def check_labels(layers: Labels, *, classes: int) -> None:
    """Raises ValueError when a value is neither in [0, K) nor IGNORE."""
    strange = np.unique(layers[(layers >= classes) & (layers != IGNORE)])
    if strange.size:
        raise ValueError(
            f"labels {strange.tolist()} where classes are 0..{classes - 1} or {IGNORE}: check the classes of the cohort"
        )
