"""Batches from blocks: the same code behind every transport, so that each gives the same batches in the same order."""

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from casebook import Cohort
from rayters.patches.plan import plan_epoch
from rayters.patches.read import Block, read_block
from rayters.patches.sampling import Sampling
from rayters.patches.share import Group, Share
from rayters.patches.view import Request


def local_batches(
    cohort: Cohort,
    request: Request,
    sampling: Sampling,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    first_batch: int = 0,
) -> Iterator[Block]:
    """The batches of one worker and epoch, read in this thread: columns as read_block, (B, ...), from ``first_batch`` on."""
    plan = plan_epoch(cohort, request, sampling, seed=seed, epoch=epoch)
    share = Share(plan=plan, rank=rank, world=world, batch_size=batch_size)
    tasks = (task for group in share.groups(first_batch) for task in group.tasks)
    yield from batches(share, map(partial(read_block, request=request, border=sampling.border), tasks), first_batch)


def batches(share: Share, blocks: Iterable[Block], first_batch: int) -> Iterator[Block]:
    """Cut the share's batches from its blocks, which must come in the order of the tasks of ``share.groups(first_batch)``."""
    rows = mixed_rows(share.groups(first_batch), iter(blocks))
    for batch in range(first_batch, share.num_batches):
        size = share.batch_start(batch + 1) - share.batch_start(batch)
        yield gather([next(rows) for _ in range(size)])


def mixed_rows(groups: Iterable[Group], blocks: Iterator[Block]) -> Iterator[tuple[Block, int]]:
    """(block, row) of each patch, in mixed order.

    Raises:
        RuntimeError: when a block does not hold the patches that were planned for its turn.
    """
    for group in groups:
        held = []
        for task in group.tasks:
            block = next(blocks, None)
            if block is None or not np.array_equal(block["patch"], task.patches):
                seen = "the stream's end" if block is None else f"patches {block['patch'][:3]}..."
                raise RuntimeError(
                    f"the stream is not in the order of its plan: expected patches {task.patches[:3]}... of case "
                    f"{task.row.case!r}, seen {seen}; hand the trainer dataset_config=StreamConfig()"
                )
            held.append(block)
        ends = np.cumsum([0, *(len(task) for task in group.tasks)])
        for place in group.order:
            t = int(np.searchsorted(ends, place, side="right")) - 1
            yield held[t], int(place - ends[t])


def gather(rows: list[tuple[Block, int]]) -> Block:
    """One batch from rows of several blocks: one copy of every patch, into memory of the batch's own."""
    first = rows[0][0]
    out: Block = {}
    for name, column in first.items():
        to: NDArray[np.generic] = np.empty((len(rows), *column.shape[1:]), dtype=column.dtype)
        for place, (block, row) in enumerate(rows):
            to[place] = block[name][row]
        out[name] = to
    return out
