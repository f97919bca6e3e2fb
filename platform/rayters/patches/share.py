"""A worker's share of an epoch, cut into groups of blocks that are mixed, and into batches.

    plan      | block | block | block | block | block | block | ...          patches 0 .. N-1, block by block
    shares    |------ rank 0 ------|------ rank 1 ------|------ rank 2       consecutive runs, equal to within one patch
    groups    |= mix_blocks =|= mix_blocks =|                                permuted inside, so a batch is no neighbourhood
    batches   |--|--|--|--|--|--|--|--|--|--|                                cut from the permuted run

A block on the border between two shares is read by both, which costs less than one block per worker and epoch. Resuming at
batch b skips whole groups unread, and of the group that b lies in reads only what is left: the same batches follow, bit by bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayters.patches.plan import BlockTask, EpochPlan


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Blocks that are mixed, and the order of their patches: (P,) int64, rows of the blocks laid end to end."""

    tasks: tuple[BlockTask, ...]
    order: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Share:
    """The patches [start, stop) of a plan, and the batches they make."""

    plan: EpochPlan
    rank: int
    world: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.plan.num_patches < self.world:
            raise ValueError(
                f"{self.plan.num_patches} patches for {self.world} workers: raise patches_per_epoch or use fewer workers"
            )
        if not 0 <= self.rank < self.world or self.batch_size < 1:
            raise ValueError(f"rank {self.rank} of {self.world}, batches of {self.batch_size}: no such share")

    @property
    def start(self) -> int:
        return self.plan.num_patches * self.rank // self.world

    @property
    def stop(self) -> int:
        return self.plan.num_patches * (self.rank + 1) // self.world

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def num_batches(self) -> int:
        """Batches of an epoch: the same number on every worker, or gradient averaging would wait for ever."""
        fewest, most = self.plan.num_patches // self.world, -(-self.plan.num_patches // self.world)
        return min(-(-most // self.batch_size), fewest)

    def batch_start(self, batch: int) -> int:
        """Patches of this share before a batch: batch_size each, only the last ones smaller, and none empty."""
        if batch >= self.num_batches:
            return len(self)
        return min(batch * self.batch_size, len(self) - (self.num_batches - batch))

    def groups(self, first_batch: int = 0) -> Iterator[Group]:
        """The groups in order, from the one on that ``first_batch`` lies in."""
        skip = self.batch_start(first_batch)
        begin = int(np.searchsorted(self.plan.first, self.start, side="right")) - 1
        end = int(np.searchsorted(self.plan.first, self.stop, side="left"))
        mix = max(1, self.plan.mix_blocks)
        for number, t in enumerate(range(begin, end, mix)):
            blocks = range(t, min(t + mix, end))
            size = min(int(self.plan.first[blocks[-1] + 1]), self.stop) - max(int(self.plan.first[t]), self.start)
            if skip >= size:
                skip -= size
                continue
            tasks = tuple(self.plan.task(b, self.start, self.stop) for b in blocks)
            yield remaining(tasks, self.order(number, size)[skip:])
            skip = 0

    def order(self, group: int, size: int) -> NDArray[np.int64]:
        if self.plan.mix_blocks == 0:
            return np.arange(size, dtype=np.int64)
        rng = np.random.default_rng([self.plan.seed, self.plan.epoch, self.rank, self.world, group])
        return rng.permutation(size)


def remaining(tasks: tuple[BlockTask, ...], order: NDArray[np.int64]) -> Group:
    """A group in which only the patches in ``order`` are read."""
    kept = np.sort(order)
    ends = np.cumsum([0, *(len(task) for task in tasks)])
    cut = np.searchsorted(kept, ends)
    trimmed = [task.take(kept[a:b] - e) for task, a, b, e in zip(tasks, cut, cut[1:], ends, strict=False) if b > a]
    return Group(tasks=tuple(trimmed), order=np.searchsorted(kept, order).astype(np.int64))
