"""Do the probabilities mean what they say? Expected calibration error, Brier score, negative log-likelihood.

Shapes: posterior (K, *S) sums to 1 over K; reference (*S) integers, IGNORE does not count.

Sums are kept, not means, so that the result over a cohort is exact whatever its patches: add the ``Calibration`` of
each.
Sources: Guo et al., On calibration of modern neural networks, ICML 2017 (ECE of the top class, equal-width bins); Brier
1950, in the form that sums over all classes, in [0, 2].
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casebook.labels import IGNORE

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Sums over pixels. By bin of confidence, (bins,): pixels, their summed confidence, how many were right. Then
    scalars.
    """

    pixels: NDArray[np.int64]
    confidence: Floats
    correct: NDArray[np.int64]
    squared: float
    nats: float

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            pixels=self.pixels + other.pixels,
            confidence=self.confidence + other.confidence,
            correct=self.correct + other.correct,
            squared=self.squared + other.squared,
            nats=self.nats + other.nats,
        )

    @property
    def ece(self) -> float:
        """Mean over pixels of |confidence - accuracy| of their bin, in [0, 1]; NaN without pixels."""
        return float(np.abs(self.confidence - self.correct).sum() / self._total)

    @property
    def brier(self) -> float:
        """Mean over pixels of sum over classes (p - 1[class])^2, in [0, 2]."""
        return self.squared / self._total

    @property
    def nll(self) -> float:
        """Mean over pixels of -log p(reference), in nats."""
        return self.nats / self._total

    @property
    def _total(self) -> float:
        return float(self.pixels.sum()) or float("nan")


def calibration(posterior: NDArray[np.floating], reference: NDArray[np.integer], *, bins: int = 15) -> Calibration:
    """Of one picture. A confidence of exactly 1 falls in the last bin; probabilities are clipped at 1e-12 before the
    logarithm.
    """
    counted = reference != IGNORE
    p, truth = posterior[:, counted].astype(np.float64), reference[counted].astype(np.int64)
    top, written = p.max(axis=0), p[truth, np.arange(truth.size)]
    right = p.argmax(axis=0) == truth
    bin_of = np.minimum((top * bins).astype(np.int64), bins - 1)
    return Calibration(
        pixels=np.bincount(bin_of, minlength=bins),
        confidence=np.bincount(bin_of, weights=top, minlength=bins).astype(np.float64),
        correct=np.bincount(bin_of, weights=right, minlength=bins).round().astype(np.int64),
        squared=float((p**2).sum() - 2 * written.sum() + truth.size),
        nats=float(-np.log(written.clip(1e-12)).sum()),
    )
