"""The plan of an epoch: which patches, from which blocks, in which order; a pure function of (cohort, seed, epoch).

Everything else follows from it. The reader, the order of the batches, the share of a worker, the place to resume at: each is
computed from the plan by every process for itself, and nothing about the stream has to be remembered except integers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casebook import CaseRow, Cohort
from rayters.patches.drawing import Drawn, jittered, side_by_side
from rayters.patches.sampling import Sampling
from rayters.patches.view import Request

# a patch's identity is (epoch << 40) + its place in the plan: unique over 8 million epochs of 10^12 patches
EPOCH_BITS = 40


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
    origins_px0: (N, axes) int64, per patch. patches: (N,) int64, their identities, rising.
    """

    cohort: Cohort
    seed: int
    epoch: int
    mix_blocks: int  # 0: patches stay in their order
    case: NDArray[np.int64]
    first: NDArray[np.int64]
    origins_px0: NDArray[np.int64]
    patches: NDArray[np.int64]

    @property
    def num_patches(self) -> int:
        return len(self.origins_px0)

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
        drawn = side_by_side(cohort, request.target, sampling, request.target.field_of_view_px0)
        drawn = drawn.take(np.random.default_rng([seed, epoch]).permutation(len(drawn.origins)))
    else:
        drawn = jittered(cohort, request.target, sampling, sampling.patches_per_epoch, seed=seed, epoch=epoch)
    return plan_of(cohort, drawn, seed=seed, epoch=epoch, mix_blocks=sampling.mix_blocks)


def plan_grid(
    cohort: Cohort, request: Request, sampling: Sampling, *, overlap_px0: tuple[int, ...] | None = None
) -> EpochPlan:
    """Targets over every pixel, neighbours sharing ``overlap_px0``, case after case, block after block: for inference.

    Raises:
        ValueError: as plan_epoch, and an overlap as wide as the target.
    """
    check(cohort, request)
    field = request.target.field_of_view_px0
    step = tuple(f - o for f, o in zip(field, overlap_px0 or tuple(0 for _ in field), strict=True))
    if min(step) < 1:
        raise ValueError(f"targets of {field} px0 cannot share {overlap_px0} px0 with their neighbours: overlap less")
    return plan_of(cohort, side_by_side(cohort, request.target, sampling, step), seed=0, epoch=0, mix_blocks=0)


def plan_of(cohort: Cohort, drawn: Drawn, *, seed: int, epoch: int, mix_blocks: int) -> EpochPlan:
    counts = [len(origins) for origins in drawn.origins]
    return EpochPlan(
        cohort=cohort,
        seed=seed,
        epoch=epoch,
        mix_blocks=mix_blocks,
        case=drawn.case,
        first=np.cumsum([0, *counts], dtype=np.int64),
        origins_px0=np.concatenate(drawn.origins),
        patches=(np.int64(epoch) << EPOCH_BITS) + np.arange(sum(counts), dtype=np.int64),
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
