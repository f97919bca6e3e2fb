"""What a fusion that estimates its annotators returns."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """One layer from many, with what was learnt on the way.

    layer:     (*S) uint8, the most probable class; IGNORE where nobody looked.
    posterior: (K, *S) float32, sums to 1 over K, and to 0 where nobody looked.
    confusion: (A, K, K) P(annotator writes i | truth j), sums to 1 over i; for a fusion that varies in space, its mean
               over the pixels that are probably of class j.
    """

    layer: NDArray[np.uint8]
    posterior: NDArray[np.float32]
    confusion: NDArray[np.float64]
