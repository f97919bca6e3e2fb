"""What sampling needs to know of a case before it reads a pixel: mean and spread per channel, and which blocks
hold what.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from casebook.case import Case
from casebook.labels import IGNORE

BLOCK_PX = {2: 1024, 3: 128}  # the largest cell of the block grid: a multiple of every default chunk
LEAST_PX = 16  # the smallest: finer than any patch
CELLS_PER_AXIS = 8  # what a small case is divided into, so that its sparse structures can be found
MOST_SCANNED = 2**26  # pixels; larger cases are sampled (mean) or counted on a coarser level (blocks)


@dataclass(frozen=True, kw_only=True)
class BlockCounts:
    """Level-0 pixels per cell of the block grid (C order); estimates, when counted on a coarser level.

    foreground[k][b]: where at least one annotator wrote class k. disagreement[b]: where two annotators who looked
    differ.
    """

    block_px: tuple[int, ...]
    foreground: tuple[tuple[int, ...], ...]
    disagreement: tuple[int, ...]


def block_side(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Side of the grid's cells: a power of two that gives a small case CELLS_PER_AXIS of them, never bigger than the image.

    >>> block_side((100_000, 4_000)), block_side((5, 128, 600))
    ((1024, 256), (5, 16, 64))
    """
    return tuple(min(n, max(LEAST_PX, min(BLOCK_PX[len(shape)], _power_of_two(n // CELLS_PER_AXIS)))) for n in shape)


def _power_of_two(number: int) -> int:
    """The largest that is not above, at least 1."""
    return 1 << max(0, number.bit_length() - 1)


def count_blocks(case: Case) -> BlockCounts:
    """Counts classes and disagreement of all annotators of a case, cell by cell."""
    block_px = block_side(case.shapes[0])
    level = next((k for k, s in enumerate(case.shapes) if math.prod(s) <= MOST_SCANNED), len(case.shapes) - 1)
    factor = [round(a / b) for a, b in zip(case.spacing_um[level], case.spacing_um[0], strict=True)]
    while any(f > b for f, b in zip(factor, block_px, strict=True)):
        level -= 1
        factor = [round(a / b) for a, b in zip(case.spacing_um[level], case.spacing_um[0], strict=True)]
    foreground: list[list[int]] = [[] for _ in case.classes]
    disagreement: list[int] = []
    for origin, size in _cells(
        case.shapes[level], tuple(b // f for b, f in zip(block_px, factor, strict=True)), case.shapes[0], block_px
    ):
        if not case.annotators:
            planes = np.full((1, *size), IGNORE, np.uint8)
        else:
            planes = case.read_labels(case.annotators, level, origin, size)
        for k, cells in enumerate(foreground):
            cells.append(int((planes == k).any(0).sum()) * math.prod(factor))
        seen = planes != IGNORE
        low = np.where(seen, planes, 255).min(0)
        high = np.where(seen, planes, 0).max(0)
        disagreement.append(int((seen.any(0) & (low < high)).sum()) * math.prod(factor))
    return BlockCounts(
        block_px=block_px, foreground=tuple(tuple(c) for c in foreground), disagreement=tuple(disagreement)
    )


def _cells(
    shape: tuple[int, ...], cell: tuple[int, ...], shape0: tuple[int, ...], block_px: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Origin and size of each grid cell on the level; as many cells as the level-0 grid has."""
    for index in product(*(range(-(-n // b)) for n, b in zip(shape0, block_px, strict=True))):
        origin = tuple(min(i * c, n - 1) for i, c, n in zip(index, cell, shape, strict=True))
        yield origin, tuple(min(c, n - o) for c, n, o in zip(cell, shape, origin, strict=True))


def channel_moments(case: Case) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, stored units; of all pixels, or of 64 chunks drawn evenly from
    a large case.
    """
    total = np.zeros(case.channels)
    squares = np.zeros(case.channels)
    count = 0
    for origin, size in _sample_chunks(case):
        block = case.read_image(0, origin, size).reshape(case.channels, -1).astype(np.float64)
        total += block.sum(1)
        squares += (block**2).sum(1)
        count += block.shape[1]
    mean = total / count
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(squares / count - mean**2, 0)).tolist())


def _sample_chunks(case: Case) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    shape, chunk = case.shapes[0], case.chunk_px
    boxes = [
        (o, tuple(min(c, n - i) for c, n, i in zip(chunk, shape, o, strict=True)))
        for o in product(*(range(0, n, c) for n, c in zip(shape, chunk, strict=True)))
    ]
    if math.prod(shape) * case.channels <= MOST_SCANNED:
        return boxes
    return [boxes[i] for i in np.linspace(0, len(boxes) - 1, min(64, len(boxes))).astype(int)]
