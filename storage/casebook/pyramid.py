"""The levels of a case: each halves the axes whose pixels are finest, so that anisotropic volumes become isotropic
first.

    spacing 2.5 0.7 0.7 um  --(1,2,2)-->  2.5 1.4 1.4  --(2,2,2)-->  5 2.8 2.8

Images are averaged; label values are never averaged, the most frequent one survives (ties: the first in scan order,
which
favours no class).
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

SMALLEST_PX = {2: 128, 3: 64}  # no further level once the longest side is this short


def level_factors(shape: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[tuple[int, ...], ...]:
    """Level-0 pixels per pixel, per axis, for each level; level 0 first.

    shape: level-0 pixels; spacing: any unit, only the ratios count.
    """
    factors = [(1,) * len(shape)]
    while max(size := level_shape(shape, factors[-1])) > SMALLEST_PX[len(shape)]:
        coarse = [s * f for s, f in zip(spacing, factors[-1], strict=True)]
        finest = min(c for c, n in zip(coarse, size, strict=True) if n > 1)
        step = [2 if n > 1 and c < 2 * finest * (1 - 1e-6) else 1 for c, n in zip(coarse, size, strict=True)]
        factors.append(tuple(f * s for f, s in zip(factors[-1], step, strict=True)))
    return tuple(factors)


def level_shape(shape: tuple[int, ...], factor: tuple[int, ...]) -> tuple[int, ...]:
    """Pixels of a level: a last incomplete pixel counts."""
    return tuple(-(-n // f) for n, f in zip(shape, factor, strict=True))


def mean_down(block: NDArray[np.integer], step: tuple[int, ...]) -> NDArray[np.integer]:
    """Averages `step` (1 or 2 per spatial axis) neighbours; the last odd pixel is averaged with itself; halves round
    up.

    block: (C, *S) integer; returns (C, *ceil(S / step)) of the same dtype.
    """
    windows = _windows(block, step)
    wide = np.int32 if block.dtype.itemsize > 1 else np.int16
    total = np.full(windows[0].shape, len(windows) // 2, wide)
    for window in windows:
        total += window
    return np.asarray(total >> (len(windows).bit_length() - 1)).astype(block.dtype)


def mode_down(block: NDArray[np.uint8], step: tuple[int, ...]) -> NDArray[np.uint8]:
    """Keeps the most frequent of `step` neighbours; ties go to the first in scan order.

    block: (*S) uint8; returns (*ceil(S / step)) uint8.
    """
    windows = _windows(block, step)
    if len(windows) == 1:
        return np.ascontiguousarray(block)
    votes = [np.zeros(windows[0].shape, np.uint8) for _ in windows]
    for i, first in enumerate(windows):
        for j in range(i + 1, len(windows)):
            same = (first == windows[j]).view(np.uint8)
            votes[i] += same
            votes[j] += same
    best, most = windows[0].copy(), votes[0]
    for window, vote in zip(windows[1:], votes[1:], strict=True):
        better = vote > most
        best[better] = window[better]
        most = np.maximum(most, vote)
    return best.astype(np.uint8, copy=False)


def _windows(block: NDArray[np.integer], step: tuple[int, ...]) -> list[NDArray[np.integer]]:
    """The strided neighbours of each output pixel, in scan order; odd sides are first completed with their
    last pixel.
    """
    lead = block.ndim - len(step)
    pad = [(0, 0)] * lead + [(0, n % s) for n, s in zip(block.shape[lead:], step, strict=True)]
    whole = np.pad(block, pad, mode="edge") if any(after for _, after in pad) else block
    strides = [
        (slice(None),) * lead + tuple(slice(o, None, s) for o, s in zip(offset, step, strict=True))
        for offset in product(*(range(s) for s in step))
    ]
    return [whole[stride] for stride in strides]
