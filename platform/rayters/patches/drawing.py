"""Drawing the patches of an epoch: side by side on a grid, or jittered in blocks that are drawn by weight."""

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from casebook import CaseRow, Cohort
from rayters.patches.balance import Cells, block_weights, cell_weights, origins_by_cell
from rayters.patches.blocks import BlockGrid, block_grid, block_size_px0, chunk_size_px0
from rayters.patches.jitter import Axis, origins_in
from rayters.patches.sampling import Sampling
from rayters.patches.view import View

SEAMS = 0x5EA5  # a word of its own in the seed, apart from every epoch's


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Blocks in reading order: the case of each, (T,), and the origins of its patches, T arrays (P, axes) int64."""

    case: NDArray[np.int64]
    origins: list[NDArray[np.int64]]

    def take(self, order: NDArray[np.int64]) -> "Drawn":
        return Drawn(case=self.case[order], origins=[self.origins[i] for i in order])


def side_by_side(cohort: Cohort, target: View, sampling: Sampling, step_px0: tuple[int, ...]) -> Drawn:
    """A target every ``step_px0`` from the first pixel on, until every pixel is in one; the last may reach beyond the case."""
    case: list[int] = []
    origins: list[NDArray[np.int64]] = []
    for index, row in enumerate(cohort.cases):
        still, least = tuple(0 for _ in row.shape), tuple(1 for _ in row.shape)
        grid = block_grid(row, block_size_px0(row, target, sampling), still, least_px0=least)
        for block in range(len(grid)):
            inside = [
                starts(low, high, extent, field, step)
                for low, high, extent, field, step in zip(
                    *grid.bounds(block), row.shape, target.field_of_view_px0, step_px0, strict=True
                )
            ]
            points = np.stack(np.meshgrid(*inside, indexing="ij"), axis=-1).reshape(-1, len(inside))
            if len(points):
                case.append(index)
                origins.append(points)
    return Drawn(case=np.asarray(case, dtype=np.int64), origins=origins)


def starts(low: int, high: int, extent: int, field: int, step: int) -> NDArray[np.int64]:
    """Multiples of ``step`` in [low, high), none beyond the first whose target reaches the end of the case."""
    last = -(-max(extent - field, 0) // step) * step
    return np.arange(-(-low // step) * step, min(high, last + 1), step, dtype=np.int64)


def jittered(cohort: Cohort, target: View, sampling: Sampling, patches: int, *, seed: int, epoch: int) -> Drawn:
    """Blocks drawn by weight, and in each block targets anywhere.

    Uniform: a case gets its share by area, and inside of it every origin is equally likely.
    """
    axes = [jitter_axes(row, target, sampling) for row in cohort.cases]
    moves = seam_moves(axes, seed, epoch)
    cut = [moved_grid(row, of_case, target, move) for row, of_case, move in zip(cohort.cases, axes, moves, strict=True)]
    cells = cell_weights(cohort, sampling.balance) if sampling.balance != "uniform" else None
    case_of = np.repeat(np.arange(len(cut)), [len(grid) for grid in cut])
    block_of = np.concatenate([np.arange(len(grid)) for grid in cut])
    rng = np.random.default_rng([seed, epoch])
    drawn = draw(weights(cohort, cut, axes, cells), -(-patches // sampling.patches_per_block), rng)
    left, origins = patches, []
    for place in drawn:
        case, number = int(case_of[place]), min(sampling.patches_per_block, left)
        low, high = cut[case].bounds(int(block_of[place]))
        if cells is None:
            origins.append(origins_in(axes[case], low, high, number, rng))
        else:
            row, field = cohort.cases[case], target.field_of_view_px0
            origins.append(origins_by_cell(low, high, row, cells[case], field, number, rng))
        left -= number
    return Drawn(case=case_of[drawn].astype(np.int64), origins=origins)


def weights(
    cohort: Cohort, cut: list[BlockGrid], axes: list[tuple[Axis, ...]], cells: list[Cells] | None
) -> NDArray[np.float64]:
    """The weight of every block, case after case."""
    if cells is None:
        return np.concatenate([mass(grid, row, a) for grid, row, a in zip(cut, cohort.cases, axes, strict=True)])
    return np.concatenate([block_weights(grid, row, w) for grid, row, w in zip(cut, cohort.cases, cells, strict=True)])


def jitter_axes(row: CaseRow, target: View, sampling: Sampling) -> tuple[Axis, ...]:
    side_px0 = block_size_px0(row, target, sampling)
    chunk_px0 = chunk_size_px0(row, target)
    return tuple(
        Axis(extent=extent, chunk=chunk, field=field, moves=side // chunk)
        for extent, chunk, field, side in zip(row.shape, chunk_px0, target.field_of_view_px0, side_px0, strict=True)
    )


def seam_moves(axes: list[tuple[Axis, ...]], seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Per case and axis, by how many chunks the seams are moved in this epoch.

    From a start of each case's own they run through all combinations, so that after moves^axes epochs every one was used once:
    drawn at random, a seam that happened to come up too often would stay visible for many epochs.
    """
    starts = np.random.default_rng([seed, SEAMS]).integers(1 << 20, size=(len(axes), len(axes[0])))
    out = []
    for of_case, start in zip(axes, starts, strict=True):
        move, turn = [], epoch
        for axis, first in zip(of_case, start, strict=True):
            move.append((int(first) + turn) % axis.moves)
            turn //= axis.moves
        out.append(tuple(move))
    return out


def moved_grid(row: CaseRow, axes: tuple[Axis, ...], target: View, move: tuple[int, ...]) -> BlockGrid:
    """The blocks of a case, the seams moved by whole chunks."""
    side = tuple(axis.chunk * axis.moves for axis in axes)
    shift = tuple(axis.chunk * m for axis, m in zip(axes, move, strict=True))
    return block_grid(row, side, shift, least_px0=target.field_of_view_px0)


def mass(grid: BlockGrid, row: CaseRow, axes: tuple[Axis, ...]) -> NDArray[np.float64]:
    """How much of the epoch is each block's due, in block order, (len(grid),); the blocks of a case sum to its area."""
    total = np.ones(())
    for seams, axis in zip(grid.seams_px0, axes, strict=True):
        total = np.multiply.outer(total, axis.mass(np.diff(np.asarray(seams)).astype(np.int64)))
    return np.asarray(total.reshape(-1) * (prod(row.shape) / total.sum()), dtype=np.float64)


def draw(weight: NDArray[np.float64], number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``number`` indices in random order, index i about number * weight[i] / sum(weight) times: off by less than one.

    Systematic sampling over a random order: none twice before its share is due, so an epoch is spread over the cohort.
    """
    order = rng.permutation(len(weight))
    edges = np.cumsum(weight[order])
    if not edges[-1] > 0:
        raise ValueError("nothing to draw from: every block has weight zero; choose balance='uniform'")
    marks = (np.arange(number) + rng.random()) * (edges[-1] / number)
    drawn = order[np.minimum(np.searchsorted(edges, marks, side="right"), len(order) - 1)]
    return np.asarray(rng.permutation(drawn), dtype=np.int64)
