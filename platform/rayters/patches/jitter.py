"""Jittered patches that favour no place: every origin in a case is equally likely over the epochs, though blocks have seams.

A patch never leaves its block, so an origin o is out of reach in every epoch that has a seam inside (o, o + field):

    chunks  |       |       |       |       |       blocks of m = 2 chunks; their seams are moved every epoch
    epoch 1 |---------------|---------------|       the patch [==] can be drawn in epoch 1 but not in epoch 2
    epoch 2 |-------|---------------|-------|
            .    [==]..

Of the m possible seams of a block, c fall inside the patch, c being the chunk borders that it straddles. It can be drawn in
m - c of m epochs, and so gets the weight m / (m - c). With it, an interior block as a whole weighs what its area says.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a case as the jitter sees it, in level-0 pixels. moves: places a seam can be moved to, ``m`` above."""

    extent: int
    chunk: int
    field: int
    moves: int

    def weights(self, low: int, high: int) -> NDArray[np.float64]:
        """Weight of each origin in a block [low, high); one origin at least."""
        origins = np.arange(low, max(high - self.field, low) + 1, dtype=np.int64)
        # a border nearer than a field to either end of the case is never a seam (blocks.block_grid)
        first = np.maximum(origins + 1, self.field)
        last = np.minimum(origins + self.field - 1, self.extent - self.field)
        straddled = np.maximum(last // self.chunk - (first - 1) // self.chunk, 0)
        return np.asarray(self.moves / np.maximum(self.moves - straddled, 1), dtype=np.float64)

    def mass(self, lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum of the weights in blocks of these lengths: the length, less where a block lies at an end of the case."""
        if self.moves == 1:
            return np.maximum(lengths - self.field + 1, 1).astype(np.float64)
        missing = (self.moves - lengths / self.chunk) / (self.moves - 1)
        return np.maximum(lengths - (self.field - 1) * missing, 1)


def origins_in(
    axes: tuple[Axis, ...], low: tuple[int, ...], high: tuple[int, ...], number: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Origins of ``number`` targets wholly inside [low, high); where that is too small, centred on it. (number, axes) int64."""
    columns = []
    for axis, start, stop in zip(axes, low, high, strict=True):
        room = stop - start - axis.field
        if room <= 0:
            columns.append(np.full(number, start + room // 2, dtype=np.int64))
            continue
        edges = np.cumsum(axis.weights(start, stop))
        columns.append(start + np.searchsorted(edges, rng.random(number) * edges[-1], side="right").astype(np.int64))
    return np.stack(columns, axis=-1)
