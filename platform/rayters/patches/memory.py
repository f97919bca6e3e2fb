"""What a stream costs in memory, computed before anything is read.

    read task          boxes of every level + labels  -->  its patches          one for each CPU that reads
    object store       blocks of patches: being made, waiting, and held by the worker for mixing
    training worker    batches; reading for itself: the boxes that are held and those that are read ahead

Every term is a product of shapes. The figures are upper bounds for the largest case of the cohort.
"""

from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from casebook import CaseRow, Cohort
from rayters.patches.blocks import block_size_px0
from rayters.patches.sampling import Sampling
from rayters.patches.view import Request, View

BATCHES = 3  # the one in use, the one being filled, and the one that the device is still copying
AHEAD_OF_WORKER = (
    4  # blocks that Ray keeps ready for each worker: prefetch_blocks, and those in the coordinator's hands
)


@dataclass(frozen=True, kw_only=True)
class StreamMemory:
    """Peak bytes of each place. store: for one training worker. worker_reading: a worker that reads in threads of its own."""

    patch: int
    boxes: int
    block: int
    read_task: int
    store: int
    worker: int
    worker_reading: int


def stream_memory(
    cohort: Cohort, request: Request, sampling: Sampling, *, batch_size: int, reads: int = 2, threads: int = 2
) -> StreamMemory:
    """Peak bytes of a stream. reads: read tasks that run at once for one worker; threads: of a worker that reads for itself."""
    patch = max(patch_bytes(row, request) for row in cohort.cases)
    boxes = max(box_bytes(row, request, sampling) for row in cohort.cases)
    block = patch * max(patches_in_block(row, request.target, sampling) for row in cohort.cases)
    batches = BATCHES * batch_size * patch
    return StreamMemory(
        patch=patch,
        boxes=boxes,
        block=block,
        read_task=boxes + block,
        store=(sampling.mix_blocks + reads + AHEAD_OF_WORKER) * block,
        worker=batches,
        # a group that is mixed, what is read ahead of it, and the block whose last patches the next batch still holds
        worker_reading=(sampling.mix_blocks + 2 * threads + 1) * boxes + batches,
    )


def patch_bytes(row: CaseRow, request: Request) -> int:
    """One patch: views in their stored dtype, labels uint8, and the identity columns."""
    image = len(request.views) * row.channels * prod(request.views[0].size_px) * np.dtype(row.dtype).itemsize
    labels = len(request.annotators) * prod(request.target.size_px)
    return image + labels + 8 * (2 + len(row.shape))


def box_bytes(row: CaseRow, request: Request, sampling: Sampling) -> int:
    """The decoded boxes of a block: one per view at the view's own resolution or up to twice finer, and one per annotator."""
    pixel = row.channels * np.dtype(row.dtype).itemsize
    image = sum(pixel * box_pixels(row, view, request.target, sampling) for view in request.views)
    return image + len(request.annotators) * box_pixels(row, request.target, request.target, sampling)


def box_pixels(row: CaseRow, view: View, target: View, sampling: Sampling) -> int:
    """Pixels of the level that a view is read from, over a block and the margin by which the view is wider than the target."""
    sides = []
    for side, field, inner, down, extent in zip(
        block_size_px0(row, target, sampling),
        view.field_of_view_px0,
        target.field_of_view_px0,
        view.downsampling,
        row.shape,
        strict=True,
    ):
        step = 1 << max(0, int(down).bit_length() - 1)
        # a sliver at the case's end joins its neighbour, so a block may be one target longer than planned
        sides.append(ceil(min(side + inner + max(0, field - inner), extent) / step))
    return prod(sides)


def patches_in_block(row: CaseRow, target: View, sampling: Sampling) -> int:
    if sampling.patches_per_epoch is not None:
        return sampling.patches_per_block
    side = block_size_px0(row, target, sampling)
    return prod(ceil(min(s, n) / f) for s, n, f in zip(side, row.shape, target.field_of_view_px0, strict=True))


def refuse_if_over(needed: int, available: int, what: str, sampling: Sampling) -> None:
    """Raises:
    ValueError: with both numbers and the knobs, when ``needed`` bytes are more than ``available``.
    """
    if needed > available:
        raise ValueError(
            f"the stream needs {needed / 2**20:,.0f} MiB of {what}, there are {available / 2**20:,.0f} MiB: lower "
            f"mix_blocks ({sampling.mix_blocks}), patches_per_block ({sampling.patches_per_block}), block_px or the views"
        )
