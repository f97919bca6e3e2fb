"""The plan of an epoch: which patches, from which blocks, in which order; a pure function of (cohort, seed, epoch).

Everything else follows from it. The reader, the order of the batches, the share of a worker, the place to resume at: each is
computed from the plan by every process for itself, and nothing about the stream has to be remembered except integers.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from casebook import CaseRow, Cohort
from rayters.patches.blocks import BlockGrid, block_grid, block_size_px0, chunk_size_px0
from rayters.patches.jitter import Axis, origins_in
from rayters.patches.sampling import Sampling
from rayters.patches.view import Request, View

SEAMS = 0x5EA5  # a word of its own in the seed, apart from every epoch's
EPOCH_BITS = (
    40  # a patch's identity is (epoch << 40) + its place in the plan: unique over 8 million epochs of 10^12 patches
)


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockTask:
    """What one read task reads: some patches of one block of one case.

    origins_px0: (P, axes) int64, the first pixel of each target. patches: (P,) int64, their identities.
    """

    row: CaseRow
    case: int  # index into cohort.cases
    origins_px0: NDArray[np.int64]
    patches: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.patches)

    def take(self, rows: NDArray[np.int64] | slice) -> "BlockTask":
        """The same block with some of its patches only."""
        return BlockTask(row=self.row, case=self.case, origins_px0=self.origins_px0[rows], patches=self.patches[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class EpochPlan:
    """The blocks of an epoch in reading order, and the patches of each.

    case: (T,) int64 index into cohort.cases, per block. first: (T + 1,) int64, block t has patches first[t] .. first[t + 1] - 1.
    origins_px0: (N, axes) int64, per patch.
    """

    cohort: Cohort
    seed: int
    epoch: int
    mix_blocks: int
    case: NDArray[np.int64]
    first: NDArray[np.int64]
    origins_px0: NDArray[np.int64]

    @property
    def num_patches(self) -> int:
        return len(self.origins_px0)

    @cached_property
    def patches(self) -> NDArray[np.int64]:
        """Identity of every patch, (N,) int64."""
        return (np.int64(self.epoch) << EPOCH_BITS) + np.arange(self.num_patches, dtype=np.int64)

    @property
    def tasks(self) -> "tuple[BlockTask, ...]":
        return tuple(self.task(t, 0, self.num_patches) for t in range(len(self.case)))

    def task(self, t: int, start: int, stop: int) -> BlockTask:
        """Block ``t``, with those of its patches only whose place in the plan lies in [start, stop)."""
        span = slice(max(int(self.first[t]), start), min(int(self.first[t + 1]), stop))
        case = int(self.case[t])
        return BlockTask(
            row=self.cohort.cases[case], case=case, origins_px0=self.origins_px0[span], patches=self.patches[span]
        )


def plan_epoch(cohort: Cohort, request: Request, sampling: Sampling, *, seed: int, epoch: int) -> EpochPlan:
    """Draw the patches of an epoch and the order of their blocks.

    Raises:
        ValueError: an empty cohort, or cases that have other axes than the views.
    """
    check(cohort, request)
    if sampling.patches_per_epoch is None:
        case, origins = every_pixel_once(cohort, request.target, sampling, seed=seed, epoch=epoch)
    else:
        case, origins = jittered(cohort, request.target, sampling, sampling.patches_per_epoch, seed=seed, epoch=epoch)
    counts = np.asarray([len(o) for o in origins], dtype=np.int64)
    return EpochPlan(
        cohort=cohort,
        seed=seed,
        epoch=epoch,
        mix_blocks=sampling.mix_blocks,
        case=case,
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        origins_px0=np.concatenate(origins),
    )


def check(cohort: Cohort, request: Request) -> None:
    """Refuse what cannot be planned."""
    if not cohort.cases:
        raise ValueError(f"cohort {cohort.name!r} has no case in this split: nothing to plan; choose another split")
    sizes = {view.size_px for view in request.views}
    if len(sizes) != 1:
        raise ValueError(
            f"all views of a patch have one size, seen {sorted(sizes)}: let field_of_view_px0 differ instead"
        )
    axes = len(request.target.size_px)
    for row in cohort.cases:
        if len(row.shape) != axes:
            raise ValueError(f"case {row.case!r} has axes {row.axes}, the views have {axes}: one cohort for each")


def every_pixel_once(
    cohort: Cohort, target: View, sampling: Sampling, *, seed: int, epoch: int
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Targets side by side from the first pixel on; the last of a row may reach beyond the case. Blocks come in random order.

    Returns the case of each block, (T,), and the origins in it, T arrays (P, axes).
    """
    case: list[int] = []
    origins: list[NDArray[np.int64]] = []
    for index, row in enumerate(cohort.cases):
        still = tuple(0 for _ in row.shape)
        grid = block_grid(row, block_size_px0(row, target, sampling), still, least_px0=tuple(1 for _ in row.shape))
        for block in range(len(grid)):
            inside = [
                np.arange(-(-low // field) * field, high, field, dtype=np.int64)
                for low, high, field in zip(*grid.bounds(block), target.field_of_view_px0, strict=True)
            ]
            points = np.stack(np.meshgrid(*inside, indexing="ij"), axis=-1).reshape(-1, len(inside))
            if len(points):
                case.append(index)
                origins.append(points)
    order = np.random.default_rng([seed, epoch]).permutation(len(case))
    return np.asarray(case, dtype=np.int64)[order], [origins[i] for i in order]


def jittered(
    cohort: Cohort, target: View, sampling: Sampling, patches: int, *, seed: int, epoch: int
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Blocks drawn by their size, and in each block targets anywhere: a case gets its share by area, its places are equally likely.

    Returns as every_pixel_once.
    """
    axes = [jitter_axes(row, target, sampling) for row in cohort.cases]
    moves = seam_moves(axes, seed, epoch)
    cut = [moved_grid(row, of_case, target, move) for row, of_case, move in zip(cohort.cases, axes, moves, strict=True)]
    case_of = np.repeat(np.arange(len(cut)), [len(grid) for grid in cut])
    block_of = np.concatenate([np.arange(len(grid)) for grid in cut])
    weight = np.concatenate(
        [mass(grid, row, of_case) for grid, row, of_case in zip(cut, cohort.cases, axes, strict=True)]
    )
    rng = np.random.default_rng([seed, epoch])
    drawn = draw(weight, -(-patches // sampling.patches_per_block), rng)
    left, origins = patches, []
    for place in drawn:
        case = int(case_of[place])
        low, high = cut[case].bounds(int(block_of[place]))
        origins.append(origins_in(axes[case], low, high, min(sampling.patches_per_block, left), rng))
        left -= len(origins[-1])
    return case_of[drawn].astype(np.int64), origins


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
        total = np.multiply.outer(total, axis.mass(np.diff(np.asarray(seams, dtype=np.int64))))
    return total.reshape(-1) * (prod(row.shape) / total.sum())


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
