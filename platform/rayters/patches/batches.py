"""Batches from blocks: the same code behind every transport, so that each gives the same batches in the same order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from casebook import Cohort
from rayters.patches.ahead import map_ahead
from rayters.patches.cache import Cache
from rayters.patches.plan import plan_epoch
from rayters.patches.read import Block, fetch_block
from rayters.patches.resume import Leg, rest_of
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
    done: Sequence[Leg] = (),
    threads: int = 0,
    cache: Cache | None = None,
) -> Iterator[Block]:
    """The batches of one worker and epoch, read in this process: columns as read_block, (B, ...), from ``first_batch`` on.

    done: legs of this epoch that other numbers of workers have run before; batches count from the last of them.
    threads: 0 reads when a batch is asked for; more read blocks ahead while batches are used. cache: for object stores.
    """
    plan = rest_of(plan_epoch(cohort, request, sampling, seed=seed, epoch=epoch), done)
    share = Share(plan=plan, rank=rank, world=world, batch_size=batch_size)
    yield from own_batches(share, request, sampling.border, first_batch=first_batch, threads=threads, cache=cache)


def own_batches(
    share: Share, request: Request, border: str, *, first_batch: int, threads: int, cache: Cache | None
) -> Iterator[Block]:
    """The batches of a share, read in this process."""
    tasks = (task for group in share.groups(first_batch) for task in group.tasks)
    read = partial(fetch_block, request=request, border=border, cache=cache)
    yield from batches(share, map_ahead(read, tasks, threads=threads, ahead=2 * threads), first_batch)


class Held(Protocol):
    """A block in the hands of the worker, from which patches are copied into batches."""

    @property
    def patches(self) -> NDArray[np.int64]: ...
    def empty(self, number: int) -> Block: ...
    def copy_patch(self, row: int, batch: Block, place: int) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrived:
    """A block whose patches were cut where it was read."""

    columns: Block

    @property
    def patches(self) -> NDArray[np.int64]:
        return self.columns["patch"]

    def empty(self, number: int) -> Block:
        return {name: np.empty((number, *c.shape[1:]), dtype=c.dtype) for name, c in self.columns.items()}

    def copy_patch(self, row: int, batch: Block, place: int) -> None:
        for name, column in self.columns.items():
            batch[name][place] = column[row]


def batches(share: Share, blocks: Iterable[Held], first_batch: int) -> Iterator[Block]:
    """Cut the share's batches from its blocks, which must come in the order of the tasks of ``share.groups(first_batch)``."""
    rows = mixed_rows(share.groups(first_batch), iter(blocks))
    for batch in range(first_batch, share.num_batches):
        size = share.batch_start(batch + 1) - share.batch_start(batch)
        yield gather([next(rows) for _ in range(size)])


def mixed_rows(groups: Iterable[Group], blocks: Iterator[Held]) -> Iterator[tuple[Held, int]]:
    """(block, row) of each patch, in mixed order.

    Raises:
        RuntimeError: when a block does not hold the patches that were planned for its turn.
    """
    for group in groups:
        held = []
        for task in group.tasks:
            block = next(blocks, None)
            if block is None or not np.array_equal(block.patches, task.patches):
                seen = "the stream's end" if block is None else f"patches {block.patches[:3]}..."
                raise RuntimeError(
                    f"the stream is not in the order of its plan: expected patches {task.patches[:3]}... of case "
                    f"{task.row.case!r}, seen {seen}; hand the trainer dataset_config=StreamConfig()"
                )
            held.append(block)
        ends = np.cumsum([0, *(len(task) for task in group.tasks)])
        which = np.searchsorted(ends, group.order, side="right") - 1
        for t, row in zip(which.tolist(), (group.order - ends[which]).tolist(), strict=True):
            yield held[t], row


def gather(rows: list[tuple[Held, int]]) -> Block:
    """One batch from rows of several blocks: one copy of every patch, into memory of the batch's own."""
    batch = rows[0][0].empty(len(rows))
    for place, (block, row) in enumerate(rows):
        block.copy_patch(row, batch, place)
    return batch
