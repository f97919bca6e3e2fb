"""Balanced drawing: blocks weighted by what the annotators drew in them, from the counts in the cohort's table.

A cohort's row counts, cell by cell, the pixels of each class and the pixels that two annotators see differently. Nothing is read
from the cases themselves, so a plan over a million slides stays a matter of seconds. Below a cell nothing is known: a patch gets
its place at random inside of the cell that it was drawn for.

    class          every class has the same share of the epoch, background too, however few pixels it has
    disagreement   three quarters of the patches in proportion to disputed pixels, one quarter anywhere: who only ever sees
                   disputes never learns what is undisputed
"""

from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from casebook import CaseRow, Cohort
from rayters.patches.blocks import BlockGrid

EASY_SHARE = 0.25  # of the patches, when disagreement decides about the rest

Cells = NDArray[np.float64]  # one weight per cell of a case, (cells per axis ...)


def cell_counts(row: CaseRow) -> tuple[int, ...]:
    return tuple(-(-extent // side) for extent, side in zip(row.shape, row.block_px, strict=True))


def cell_weights(cohort: Cohort, balance: Literal["class", "disagreement"]) -> list[Cells]:
    """Weight of every cell of every case; they sum to one over the cohort.

    Raises:
        ValueError: when the table has no counts, or nobody ever disagrees.
    """
    for row in cohort.cases:
        if len(row.disagreement) != prod(cell_counts(row)):
            raise ValueError(
                f"the cohort's table has {len(row.disagreement)} counts for case {row.case!r} and {prod(cell_counts(row))} "
                "cells: write the cohort anew, or choose balance='uniform'"
            )
    if balance == "class":
        return _by_class(cohort)
    return _by_disagreement(cohort)


def _by_class(cohort: Cohort) -> list[Cells]:
    counts = [np.asarray(row.foreground, dtype=np.float64).reshape(-1, *cell_counts(row)) for row in cohort.cases]
    totals = np.sum([each.reshape(len(each), -1).sum(axis=1) for each in counts], axis=0)
    present = totals > 0
    if not present.any():
        raise ValueError("no annotator drew anything in this split: choose balance='uniform'")
    share = np.where(present, 1 / np.maximum(totals, 1), 0) / present.sum()
    return [np.tensordot(share, each, axes=1) for each in counts]


def _by_disagreement(cohort: Cohort) -> list[Cells]:
    disputed = [np.asarray(row.disagreement, dtype=np.float64).reshape(cell_counts(row)) for row in cohort.cases]
    areas = [cell_areas(row) for row in cohort.cases]
    total, area = sum(float(d.sum()) for d in disputed), sum(float(a.sum()) for a in areas)
    if total == 0:
        raise ValueError("no two annotators of this split ever disagree: choose balance='uniform' or 'class'")
    return [(1 - EASY_SHARE) / total * d + EASY_SHARE / area * a for d, a in zip(disputed, areas, strict=True)]


def cell_areas(row: CaseRow) -> Cells:
    """Level-0 pixels in each cell; the last ones of an axis are smaller."""
    area = np.ones(())
    for extent, side, count in zip(row.shape, row.block_px, cell_counts(row), strict=True):
        edges = np.minimum(np.arange(count + 1) * side, extent)
        area = np.multiply.outer(area, np.diff(edges).astype(np.float64))
    return area


def block_weights(grid: BlockGrid, row: CaseRow, cells: Cells) -> NDArray[np.float64]:
    """Weight of each block, in block order: of each cell the part that lies in it."""
    out = cells
    for axis, (seams, side) in enumerate(zip(grid.seams_px0, row.block_px, strict=True)):
        out = np.moveaxis(
            np.tensordot(overlap(seams, side, cells.shape[axis], row.shape[axis]), out, axes=(1, axis)), 0, axis
        )
    return out.reshape(-1)


def overlap(seams: tuple[int, ...], side: int, cells: int, extent: int) -> NDArray[np.float64]:
    """(blocks, cells) the fraction of each cell's length that lies in each block, along one axis."""
    edges = np.minimum(np.arange(cells + 1) * side, extent)
    low = np.maximum(np.asarray(seams[:-1])[:, None], edges[:-1])
    high = np.minimum(np.asarray(seams[1:])[:, None], edges[1:])
    return np.asarray(np.maximum(high - low, 0) / np.diff(edges), dtype=np.float64)


def origins_by_cell(
    low: tuple[int, ...],
    high: tuple[int, ...],
    row: CaseRow,
    cells: Cells,
    field: tuple[int, ...],
    number: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Origins of ``number`` targets in the block [low, high), their middles in cells drawn by weight. (number, axes) int64."""
    block = BlockGrid(seams_px0=tuple(zip(low, high, strict=True)))
    part = cells
    for axis, (seams, side) in enumerate(zip(block.seams_px0, row.block_px, strict=True)):
        inside = overlap(seams, side, cells.shape[axis], row.shape[axis])[0]
        part = part * inside.reshape(-1, *(1,) * (cells.ndim - axis - 1))
    drawn = np.unravel_index(rng.choice(part.size, size=number, p=part.reshape(-1) / part.sum()), part.shape)
    columns = []
    for axis, (start, stop, extent) in enumerate(zip(low, high, field, strict=True)):
        first = np.maximum(drawn[axis] * row.block_px[axis], start)
        past = np.minimum((drawn[axis] + 1) * row.block_px[axis], stop)
        middle = rng.integers(first, past)
        room = stop - start - extent
        columns.append(
            np.clip(middle - extent // 2, start, stop - extent) if room >= 0 else np.full(number, start + room // 2)
        )
    return np.stack(columns, axis=-1).astype(np.int64)
