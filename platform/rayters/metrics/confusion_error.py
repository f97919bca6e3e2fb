"""How well the annotators were understood: estimated confusions against the true ones.

Shapes: B patches, A annotators, K classes, S spatial axes. confusion[a, i, j] = P(annotator a writes i | truth j):
columns (over i) sum to 1, NaN in the column of a class that never occurred.

Everything is conditional on the true class: column j is counted, and an estimated confusion averaged, over the pixels
whose reference is j. Sums over patches are exact: the result over a cohort is that of one pass over all its pixels, in
any order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from casebook.labels import IGNORE

Labels = NDArray[np.integer]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ConfusionCounts:
    """How often annotator a wrote i where the reference is j: (A, K, K) int64."""

    counts: NDArray[np.int64]

    def __add__(self, other: "ConfusionCounts") -> "ConfusionCounts":
        return ConfusionCounts(counts=self.counts + other.counts)

    @property
    def confusion(self) -> Floats:
        """(A, K, K), columns sum to 1, or are NaN where this annotator never met the class."""
        return _normalised(self.counts.astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class EstimatedConfusion:
    """An estimated confusion that varies by patch or pixel, summed over the pixels of each true class.

    sums: (A, K, K) float64; pixels: (K,) int64, how many pixels each column is the sum of.
    """

    sums: Floats
    pixels: NDArray[np.int64]

    def __add__(self, other: "EstimatedConfusion") -> "EstimatedConfusion":
        return EstimatedConfusion(sums=self.sums + other.sums, pixels=self.pixels + other.pixels)

    @property
    def confusion(self) -> Floats:
        """(A, K, K), the mean over the pixels of each true class; NaN for a class that never occurred."""
        mean = self.sums / np.maximum(self.pixels, 1)
        return np.where(self.pixels > 0, mean, np.nan)


def count_confusion(labels: Labels, reference: Labels, *, classes: int) -> ConfusionCounts:
    """The true confusion of one batch: labels (B, A, *S), reference (B, *S); IGNORE in either does not count."""
    annotators = labels.shape[1]
    counts = np.zeros((annotators, classes, classes), dtype=np.int64)
    for a in range(annotators):
        seen = (labels[:, a] != IGNORE) & (reference != IGNORE)
        joint = labels[:, a][seen].astype(np.int64) * classes + reference[seen]
        counts[a] = np.bincount(joint, minlength=classes**2).reshape(classes, classes)
    return ConfusionCounts(counts=counts)


def sum_estimate(confusion: NDArray[np.floating], reference: Labels) -> EstimatedConfusion:
    """The estimate of one batch. confusion: (B, A, K, K, *S), or (B, A, K, K) per patch, or (A, K, K) for all;
    reference (B, *S).
    """
    patches = len(reference)
    classes = confusion.shape[-1] if confusion.ndim <= 4 else confusion.shape[3]
    if confusion.ndim == 3:
        confusion = np.broadcast_to(confusion, (patches, *confusion.shape))
    flat = confusion.reshape(*confusion.shape[:4], -1)  # (B, A, K, K, 1 or pixels)
    truth = np.stack([(reference == j).reshape(patches, -1) for j in range(classes)], axis=1)  # (B, K, pixels)
    weight = truth.sum(axis=-1, keepdims=True) if flat.shape[-1] == 1 else truth
    sums = np.einsum("baijs,bjs->aij", flat, weight, dtype=np.float64)
    return EstimatedConfusion(sums=sums, pixels=truth.sum(axis=(0, 2)).astype(np.int64))


def confusion_rmse(estimated: Floats, true: Floats) -> float:
    """Root mean square over the entries of each annotator's matrix, averaged over annotators; columns unknown in either
    are left out.
    """
    squared = (estimated - true) ** 2
    known = ~np.isnan(squared).all(axis=(1, 2))
    return float(np.sqrt(np.nanmean(squared[known], axis=(1, 2))).mean()) if known.any() else float("nan")


def reliability(confusion: Floats) -> Floats:
    """One number per annotator: the mean of the diagonal, that is accuracy with all true classes weighed alike; (A,),
    in [0, 1].
    """
    diagonal = np.diagonal(confusion, axis1=1, axis2=2)
    known = ~np.isnan(diagonal)
    mean: Floats = np.where(known, diagonal, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.where(known.any(axis=1), mean, np.nan)


def reliability_rank_correlation(estimated: Floats, true: Floats) -> float:
    """Spearman's rank correlation of estimated and true reliability, both (A, K, K); ties share their mean rank.

    NaN with fewer than two known annotators, or when one side ranks all alike.
    """
    return rank_correlation(reliability(estimated), reliability(true))


def rank_correlation(estimated: Floats, true: Floats) -> float:
    """The same of reliabilities, both (A,); NaN is an annotator of whom nothing is known."""
    known = ~np.isnan(estimated) & ~np.isnan(true)
    ranks = rankdata(estimated[known].round(6)), rankdata(true[known].round(6))
    if known.sum() < 2 or any(np.ptp(r) == 0 for r in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _normalised(counts: Floats) -> Floats:
    columns = counts.sum(axis=1, keepdims=True)
    return np.where(columns > 0, counts / np.where(columns > 0, columns, 1), np.nan)
