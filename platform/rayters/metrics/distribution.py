"""A set of predictions against a set of annotators: do they vary alike?

Shapes: samples (N, *S) and annotators (M, *S) integer label maps; posterior and mean label maps (K, *S); K classes, 0
the background.

d = 1 - IoU, mean over the foreground classes, with IoU(nothing, nothing) = 1. IGNORE in one of two maps does not
count in that pair. Inputs are never changed.

Sources: GED: Szekely and Rizzo 2013; Kohl et al., A probabilistic U-Net, NeurIPS 2018. Dice-soft: Ji et al., MRNet,
CVPR 2021. Dice-max and Dice-match: Wu et al., D-Persona, CVPR 2024.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from casebook.labels import IGNORE

Labels = NDArray[np.integer]
Floats = NDArray[np.float64]

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)


def pairwise_overlap(a: Labels, b: Labels, *, classes: int) -> tuple[Floats, Floats]:
    """IoU and Dice of every map of ``a`` with every map of ``b``: two (N, M), means over the foreground classes."""
    x, y = a.reshape(len(a), -1), b.reshape(len(b), -1)
    x_looked, y_looked = _ones(x != IGNORE), _ones(y != IGNORE)
    iou, dice = np.zeros((len(x), len(y))), np.zeros((len(x), len(y)))
    for k in range(1, classes):
        x_k, y_k = _ones(x == k), _ones(y == k)
        both = x_k @ y_k.T
        sizes = x_k @ y_looked.T + x_looked @ y_k.T
        present = sizes > 0
        iou += np.where(present, both / np.where(present, sizes - both, 1), 1)
        dice += np.where(present, 2 * both / np.where(present, sizes, 1), 1)
    return iou / (classes - 1), dice / (classes - 1)


def ged_squared(samples: Labels, annotators: Labels, *, classes: int, statistic: Literal["V", "U"] = "V") -> float:
    """Squared generalised energy distance, 2 E d(S, Y) - E d(S, S') - E d(Y, Y').

    "V" takes the expectations over all pairs, a map with itself included, as the literature does: biased upwards with
    few samples, 0 for identical sets, and never negative where all maps look at the same pixels; with IGNORE every pair
    is compared on pixels of its own, d is then no metric, and the result may fall below 0. "U" leaves the pairs of a
    map with itself out: unbiased, may be negative; needs two maps on either side.
    """
    between = 1 - pairwise_overlap(samples, annotators, classes=classes)[0]
    return float(2 * between.mean() - _spread(samples, classes, statistic) - _spread(annotators, classes, statistic))


def sample_diversity(samples: Labels, *, classes: int) -> float:
    """E d(S, S') over pairs of different samples (U statistic), in [0, 1]."""
    return _spread(samples, classes, "U")


def dice_soft(
    posterior: NDArray[np.floating], mean_label: NDArray[np.floating], *, thresholds: tuple[float, ...] = THRESHOLDS
) -> Floats:
    """Dice of the two maps cut at each threshold, mean over the thresholds: (K-1,), foreground classes.

    Pixels whose mean label sums to 0 over K, where nobody looked, do not count.
    """
    looked = mean_label.sum(axis=0) > 0
    p, q = posterior[1:, looked], mean_label[1:, looked]
    return np.asarray(np.mean([_dice_masks(p > t, q > t) for t in thresholds], axis=0))


def dice_max(samples: Labels, annotators: Labels, *, classes: int) -> tuple[float, float]:
    """Every annotator's best sample, mean over annotators; and every sample's best annotator, mean over samples."""
    dice = pairwise_overlap(samples, annotators, classes=classes)[1]
    return float(dice.max(axis=0).mean()), float(dice.max(axis=1).mean())


def dice_match(samples: Labels, annotators: Labels, *, classes: int) -> float:
    """Mean Dice of the best one-to-one assignment of samples to annotators (Hungarian); the surplus of the larger
    set is left out.
    """
    dice = pairwise_overlap(samples, annotators, classes=classes)[1]
    rows, columns = linear_sum_assignment(dice, maximize=True)
    return float(dice[rows, columns].mean())


def _spread(maps: Labels, classes: int, statistic: Literal["V", "U"]) -> float:
    distance = 1 - pairwise_overlap(maps, maps, classes=classes)[0]
    n = len(maps)
    if statistic == "V":
        return float(distance.mean())
    if n < 2:
        raise ValueError(f"the U statistic needs pairs of different maps, there is {n}: use 'V' or more samples")
    return float((distance.sum() - np.trace(distance)) / (n * (n - 1)))


def _dice_masks(p: NDArray[np.bool_], q: NDArray[np.bool_]) -> Floats:
    both, sizes = (p & q).sum(axis=1), p.sum(axis=1) + q.sum(axis=1)
    return np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0)


def _ones(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Float64: pixel counts stay exact up to 2^53, and the product runs in BLAS."""
    return mask.astype(np.float64)
