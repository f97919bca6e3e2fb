"""Windows: where the pixels of a view lie in a level of a pyramid, and how they become size_px pixels.

level   0   1   2   3   4   5   6   7          A window of a view starts at start_px0 / d and is field / d pixels long in
        |   [---|---|---|---]   |   |          a level that is d times coarser than level 0. Where the level is finer than
            2.0         5.5                    the view, a pixel of the view is the mean of the area it covers; a label is
                                               the label under the middle of it, for labels have no mean.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rayters.patches.view import View

EXACT = 1e-6  # pixels; below, a window counts as lying on the grid of its level


@dataclass(frozen=True, kw_only=True)
class Span:
    """One axis of one window: ``size`` pixels wanted of ``extent`` pixels of the level, from ``start`` on (both real numbers)."""

    start: float
    extent: float
    size: int

    @property
    def exact(self) -> bool:
        return abs(self.extent - self.size) < EXACT

    def covered(self) -> NDArray[np.int64]:
        """The level's pixels that the window touches; some may lie outside of the case."""
        if self.exact:
            first = round(self.start)
            return np.arange(first, first + self.size, dtype=np.int64)
        first, last = int(np.floor(self.start + EXACT)), int(np.ceil(self.start + self.extent - EXACT))
        if self.extent < self.size:  # the window is finer than the level: interpolation looks one pixel around
            first, last = first - 1, last + 1
        return np.arange(first, last, dtype=np.int64)

    def weights(self) -> NDArray[np.float32]:
        """(size, covered) mean of area where the level is finer, linear interpolation where it is coarser; rows sum to one."""
        return _weights(self.start - float(self.covered()[0]), self.extent, self.size, len(self.covered()))

    def nearest(self) -> NDArray[np.int64]:
        """(size,) the level's pixel under the middle of each pixel of the window."""
        if self.exact:
            return self.covered()
        ratio = self.extent / self.size
        middles = self.start + (np.arange(self.size) + 0.5) * ratio
        return np.asarray(np.floor(middles + EXACT), dtype=np.int64)


@lru_cache(maxsize=1024)
def _weights(offset: float, extent: float, size: int, covered: int) -> NDArray[np.float32]:
    ratio = extent / size
    if ratio >= 1:
        edges = offset + np.arange(size + 1) * ratio
        cells = np.arange(covered)
        overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    else:
        middles = offset + (np.arange(size) + 0.5) * ratio - 0.5
        overlap = 1 - np.abs(middles[:, None] - np.arange(covered))
    overlap = np.maximum(overlap, 0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), dtype=np.float32)


def level_for(view: View, shapes: tuple[tuple[int, ...], ...]) -> int:
    """The coarsest level still at least as fine as the view on every axis; level 0 if none is."""
    fit = 0
    for level, shape in enumerate(shapes):
        finer = all(d <= v * (1 + EXACT) for d, v in zip(downsampling(shapes, level), view.downsampling, strict=True))
        if finer and min(shape) > 0:
            fit = level
    return fit


def downsampling(shapes: tuple[tuple[int, ...], ...], level: int) -> tuple[float, ...]:
    """Level-0 pixels per pixel of a level, per axis.

    Shapes are rounded where a side is odd, so the ratio is rounded to the next half power of two: 2.0003 is 2.
    """
    return tuple(_steps(full, here) for full, here in zip(shapes[0], shapes[level], strict=True))


def _steps(full: int, here: int) -> float:
    ratio = full / here
    whole = 2.0 ** round(np.log2(ratio))
    # ceil(full / whole) or floor(full / whole) pixels: the level is a halving, the odd pixel at the far side apart
    return whole if abs(full / whole - here) <= 1 else ratio


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """The windows of one view of many patches in one level: starts (P, axes) in pixels of the level, real numbers."""

    starts: NDArray[np.float64]
    extents: tuple[float, ...]
    sizes: tuple[int, ...]

    def spans(self, patch: int) -> tuple[Span, ...]:
        return tuple(
            Span(start=float(start), extent=extent, size=size)
            for start, extent, size in zip(self.starts[patch], self.extents, self.sizes, strict=True)
        )

    @property
    def exact(self) -> bool:
        return all(abs(extent - size) < EXACT for extent, size in zip(self.extents, self.sizes, strict=True))

    def touched(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First pixel and one past the last that each window touches, (P, axes) each; as Span.covered, all at once."""
        if self.exact:
            first = np.rint(self.starts).astype(np.int64)
            return first, first + np.asarray(self.sizes)
        ends = [(span.covered()[0], span.covered()[-1] + 1) for p in range(len(self.starts)) for span in self.spans(p)]
        both = np.asarray(ends, dtype=np.int64).reshape(*self.starts.shape, 2)
        return both[..., 0], both[..., 1]

    def hull(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The box of the level that holds what the windows touch, and what they see of it in the mirrors at its borders."""
        first, past = self.touched()
        low, high = [], []
        for axis, extent in enumerate(shape):
            a, b = int(first[:, axis].min()), int(past[:, axis].max())
            seen_low = min(a, 2 * (extent - 1) - (b - 1)) if b > extent else a
            seen_high = max(b, -a + 1) if a < 0 else b
            low.append(min(max(0, seen_low), extent - 1))
            high.append(min(extent, max(seen_high, 1)))
        return tuple(low), tuple(high)

    def slices(self, low: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[tuple[slice, ...] | None]:
        """Each window as slices of a box that starts at ``low``; None where it must be mirrored or resampled."""
        if not self.exact:
            yield from (None for _ in self.starts)
            return
        first, past = self.touched()
        inside = np.all((first >= 0) & (past <= np.asarray(shape)), axis=1)
        for ok, start in zip(inside.tolist(), (first - np.asarray(low)).tolist(), strict=True):
            yield tuple(slice(i, i + n) for i, n in zip(start, self.sizes, strict=True)) if ok else None


def windows(view: View, target: View, origins_px0: NDArray[np.int64], down: tuple[float, ...]) -> Windows:
    """The windows of a view in a level, for targets that start at ``origins_px0``: all views share the target's centre."""
    beyond = np.subtract(target.field_of_view_px0, view.field_of_view_px0) / 2
    return Windows(
        starts=(origins_px0 + beyond) / np.asarray(down),
        extents=tuple(field / d for field, d in zip(view.field_of_view_px0, down, strict=True)),
        sizes=view.size_px,
    )


def mirrored(index: NDArray[np.int64], extent: int) -> NDArray[np.int64]:
    """Pixel numbers beyond the case, folded back into it as in a mirror at the border pixel: -2 -1 | 0 1 2 becomes 2 1 | 0 1 2."""
    if extent == 1:
        return np.zeros_like(index)
    period = 2 * (extent - 1)
    folded = np.mod(index, period)
    return np.asarray(np.minimum(folded, period - folded), dtype=np.int64)
