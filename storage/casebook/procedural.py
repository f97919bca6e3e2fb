"""A slide that nobody scanned: any box of it is a pure function of the seed and the coordinates, at any size.

Tissue, tumour and stroma are smooth random fields; nuclei sit one to a cell of a jittered grid, denser and darker in the tumour; a
grain makes the pixels as hard to compress as a scanner's. Three annotators draw the tumour: one well, one too wide, one
too narrow, each with a wobble of the own hand. Every operation is elementwise, so tiles agree to the bit however they are cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.case import Layer

CLASSES = ("background", "tumour")
TUMOUR_PX, TISSUE_PX, WOBBLE_PX, NUCLEUS_PX = 1500, 6000, 220, 22
BAND_PX = 64
STYLES = {"good": 0.0, "over": -0.05, "under": 0.05}  # shift of the threshold: a lower one draws a wider tumour
_WHITE, _PINK, _PURPLE, _NUCLEUS = (
    np.array(c, np.float32) for c in ((243, 241, 244), (226, 160, 198), (178, 116, 178), (86, 52, 124))
)


def _hash(*keys: Any) -> NDArray[np.uint64]:
    """Mixes integers (arrays broadcast) into 64 random bits; splitmix64's finaliser (Steele et al., OOPSLA 2014)."""
    mixed: Any = np.uint64(0)
    with np.errstate(over="ignore"):
        for key in keys:
            mixed = (mixed ^ np.asarray(key).astype(np.int64).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
    return np.asarray(mixed)


def _unit(bits: NDArray[np.uint64]) -> NDArray[np.float32]:
    """In [0, 1)."""
    return (bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def smooth_field(seed: int, cell_px: int, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Value noise in [0, 1]: random at the corners of cells, smooth between; (*size) of level-0 pixels from origin."""
    corners, weights = [], []
    for start, length in zip(origin, size, strict=True):
        at = np.arange(start, start + length)
        t = ((at % cell_px) / cell_px).astype(np.float32)
        corners.append(at // cell_px)
        weights.append(t * t * (3 - 2 * t))
    first = [c[0] for c in corners]
    values = _unit(
        _hash(seed, np.arange(first[0], corners[0][-1] + 2)[:, None], np.arange(first[1], corners[1][-1] + 2))
    )
    iy, counts = corners[0] - first[0], np.bincount(corners[1] - first[1])
    rows = values[iy] + (values[iy + 1] - values[iy]) * weights[0][:, None]
    field = np.repeat(np.diff(rows, axis=1), counts, axis=1)
    field *= weights[1]
    field += np.repeat(rows[:, :-1], counts, axis=1)
    return np.asarray(field)


def _tumour(seed: int, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.float32]:
    return np.float32(0.7) * smooth_field(seed + 1, TUMOUR_PX, origin, size) + np.float32(0.3) * smooth_field(
        seed + 2, TUMOUR_PX // 4, origin, size
    )


def _tissue(seed: int, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.bool_]:
    return (
        smooth_field(seed + 3, TISSUE_PX, origin, size)
        + np.float32(0.1) * smooth_field(seed + 4, TISSUE_PX // 8, origin, size)
        > 0.45
    )


def _nuclei(seed: int, origin: tuple[int, ...], size: tuple[int, ...], dense: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """One round nucleus at most per grid cell, wholly inside it; half of the cells are empty outside the tumour."""
    at = [np.arange(o, o + s) for o, s in zip(origin, size, strict=True)]
    cells = [a // NUCLEUS_PX for a in at]
    first = [c[0] for c in cells]
    bits = _hash(seed + 5, np.arange(first[0], cells[0][-1] + 1)[:, None], np.arange(first[1], cells[1][-1] + 1))
    radius = 4 + 4 * _unit(bits << np.uint64(40))
    free = NUCLEUS_PX - 2 * radius
    centre = [radius + free * _unit(bits << np.uint64(shift)) for shift in (0, 20)]
    where = np.ix_(cells[0] - first[0], cells[1] - first[1])
    dy = (at[0] % NUCLEUS_PX).astype(np.float32)[:, None] - centre[0][where]
    dx = (at[1] % NUCLEUS_PX).astype(np.float32) - centre[1][where]
    present = (bits & np.uint64(1)).astype(bool)[where] | dense
    inside: NDArray[np.bool_] = (dy * dy + dx * dx < (radius * radius)[where]) & present
    return inside


def _bands(origin: tuple[int, ...], size: tuple[int, ...]) -> Iterator[tuple[slice, tuple[int, ...], tuple[int, ...]]]:
    """A box in bands of few rows, so that all that is computed stays in the cache."""
    for top in range(0, size[0], BAND_PX):
        height = min(BAND_PX, size[0] - top)
        yield slice(top, top + height), (origin[0] + top, origin[1]), (height, size[1])


@dataclass(frozen=True, kw_only=True)
class ProceduralSlide:
    """An image source of (3, side, side) uint8, like haematoxylin and eosin at 0.5 um per pixel."""

    side_px: int
    seed: int = 0
    dtype: str = "uint8"

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.side_px, self.side_px)

    @property
    def identity(self) -> str:
        return repr(self)

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        out = np.empty((3, *size), np.uint8)
        for rows, start, part in _bands(origin, size):
            out[:, rows] = self._band(start, part)
        return out

    def _band(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        tissue = _tissue(self.seed, origin, size)
        tumour = (_tumour(self.seed, origin, size) > 0.55) & tissue
        nuclei = _nuclei(self.seed, origin, size, tumour) & tissue
        at = [np.arange(o, o + s) for o, s in zip(origin, size, strict=True)]
        grain = (
            _hash(self.seed + 6, at[0])[:, None] * (_hash(self.seed + 7, at[1]) | np.uint64(1)) >> np.uint64(60)
        ).astype(np.uint8)
        palette = np.stack([_WHITE, _PINK, _PURPLE, _NUCLEUS]).astype(np.uint8) - np.uint8(8)
        kind = np.where(nuclei, 3, np.where(tumour, 2, tissue.astype(np.uint8))).astype(np.uint8)
        return np.stack([palette[kind, channel] + grain for channel in range(3)])


@dataclass(frozen=True, kw_only=True)
class ProceduralDrawing:
    """A label source: how one annotator drew the tumour. style: one of STYLES, or 'truth'."""

    side_px: int
    style: str
    seed: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.side_px, self.side_px)

    @property
    def identity(self) -> str:
        return repr(self)

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        out = np.empty(size, np.uint8)
        for rows, start, part in _bands(origin, size):
            out[rows] = self._band(start, part)
        return out

    def _band(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        field = _tumour(self.seed, origin, size)
        if self.style != "truth":
            hand = self.seed + 100 + sorted(STYLES).index(self.style)
            field = (
                field
                + np.float32(0.06) * (smooth_field(hand, WOBBLE_PX, origin, size) - np.float32(0.5))
                - np.float32(STYLES[self.style])
            )
        return ((field > 0.55) & _tissue(self.seed, origin, size)).astype(np.uint8)


def procedural_layers(side_px: int, seed: int = 0) -> dict[Layer, ProceduralDrawing]:
    """The three annotators and the truth."""
    tool = "casebook.procedural"
    drawn = {Layer(id=style, tool=tool): ProceduralDrawing(side_px=side_px, style=style, seed=seed) for style in STYLES}
    return drawn | {
        Layer(id="truth", role="reference", tool=tool): ProceduralDrawing(side_px=side_px, style="truth", seed=seed)
    }
