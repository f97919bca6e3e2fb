"""Sheets of handwritten digits with five annotators: real handwriting, no download, a truth that is known exactly.

    +----+----+----+
    | 3  | 8  | 0  |  ...   scikit-learn's 1,797 digits of 8x8 px, enlarged to ``glyph_px`` and set in cells of
    +----+----+----+        ``cell_px``, ``rows`` x ``columns`` cells to a sheet. The clear border of a cell keeps what
      ...                   one annotator writes (grown by 2 px, displaced by up to 4 px) out of the next cell.

With the defaults a foreground share of .12 and annotators with mean P(0|0), P(1|1) = (.92, .57) come close to those of
the MNIST experiment that this stands in for (.12 and .905, .549).
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rayters.annotators.simulate import FIVE, SimulatedAnnotator, draw_all

Pixel = TypeVar("Pixel", bound=np.generic)

CLASSES = ("background", "digit")


@dataclass(frozen=True, kw_only=True)
class Sheets:
    """N sheets.

    images:    (N, C, Y, X) uint8, noisy.
    reference: (N, Y, X) uint8, 0 or 1: clean intensity > .5.
    labels:    (N, A, Y, X) uint8, what each annotator wrote, in the order of ``annotators``.
    digits:    (N, rows, columns) int64, which numeral stands in each cell.
    """

    images: NDArray[np.uint8]
    reference: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    digits: NDArray[np.int64]
    annotators: tuple[str, ...]
    classes: tuple[str, ...] = CLASSES


def digit_sheets(
    *,
    sheets: int = 28,
    rows: int = 8,
    columns: int = 8,
    glyph_px: int = 16,
    cell_px: int = 24,
    channels: int = 1,
    noise: float = 0.3,
    seed: int = 0,
    annotators: tuple[SimulatedAnnotator, ...] = FIVE,
) -> Sheets:
    """Shuffled digits on sheets; the same arguments give the same bytes.

    noise: standard deviation of the Gaussian noise, as a fraction of the full intensity range; independent per channel.

    Raises:
        ValueError: when there are not enough digits for so many cells, or the glyph does not fit its cell.
    """
    glyphs, numerals = enlarged_digits(glyph_px=glyph_px, cell_px=cell_px)
    wanted = sheets * rows * columns
    if wanted > len(glyphs):
        raise ValueError(
            f"{sheets} sheets of {rows}x{columns} need {wanted} digits, there are {len(glyphs)}: ask for fewer sheets"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(glyphs))[:wanted]
    clean = glyphs[order].reshape(sheets, rows, columns, cell_px, cell_px)
    truth = (clean > 0.5).astype(np.uint8)
    return Sheets(
        images=_noisy(_tile(clean), channels=channels, noise=noise, rng=rng),
        reference=_tile(truth),
        labels=np.stack([_tile(layer) for layer in draw_all(truth, annotators)], axis=1),
        digits=numerals[order].reshape(sheets, rows, columns),
        annotators=tuple(annotator.name for annotator in annotators),
    )


def enlarged_digits(*, glyph_px: int, cell_px: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All digits, each in the middle of its cell: (1797, cell_px, cell_px) in [0, 1], and their numerals (1797,).

    Raises:
        ValueError: when the glyph is smaller than the source's 8 px or does not fit its cell.
    """
    if not 8 <= glyph_px <= cell_px:
        raise ValueError(f"a glyph of {glyph_px} px in a cell of {cell_px} px: wanted 8 <= glyph_px <= cell_px")
    from sklearn.datasets import load_digits  # seconds to import, and only the demo wants it

    source = load_digits()
    scale = glyph_px / 8
    glyphs = ndimage.zoom(source.images / 16, (1, scale, scale), order=3, mode="grid-constant", grid_mode=True)
    before = (cell_px - glyph_px) // 2
    around = (before, cell_px - glyph_px - before)
    return np.pad(glyphs.clip(0, 1), ((0, 0), around, around)), source.target.astype(np.int64)


def _tile(cells: NDArray[Pixel]) -> NDArray[Pixel]:
    """(N, rows, columns, h, w) -> (N, rows * h, columns * w)."""
    n, rows, columns, h, w = cells.shape
    return cells.swapaxes(2, 3).reshape(n, rows * h, columns * w)


def _noisy(clean: NDArray[np.float64], *, channels: int, noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(N, Y, X) in [0, 1] -> (N, C, Y, X) uint8."""
    n, height, width = clean.shape
    grain = rng.standard_normal((n, channels, height, width), dtype=np.float32) * noise
    return ((clean[:, None] + grain).clip(0, 1) * 255).round().astype(np.uint8)
