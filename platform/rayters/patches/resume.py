"""Going on in mid-epoch with another number of workers: what was seen is computed, and the rest is planned anew.

With the same number of workers one integer says it all: ``first_batch``. When a node is lost and fewer go on, the shares are cut
otherwise, so a batch number alone says nothing. A leg says it: (workers, batch size, batches done by each). Who resumes hands the
legs of the epoch over, and the patches that they saw are taken out of the plan; each patch is seen exactly once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rayters.patches.plan import EpochPlan
from rayters.patches.share import Share


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A part of an epoch that was trained by one and the same number of workers, each having done ``batches``."""

    world: int
    batch_size: int
    batches: int


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where to go on in the stream: an epoch, the legs of it that other teams did, and the batches that one like this did."""

    epoch: int = 0
    done: tuple[Leg, ...] = ()
    first_batch: int = 0

    @classmethod
    def after(cls, epoch: int, legs: Sequence[Leg], *, world: int, batch_size: int) -> "Position":
        """Of a team of ``world`` members with batches of ``batch_size`` each, after ``legs`` of the epoch."""
        if legs and (legs[-1].world, legs[-1].batch_size) == (world, batch_size):
            return cls(epoch=epoch, done=tuple(legs[:-1]), first_batch=legs[-1].batches)
        return cls(epoch=epoch, done=tuple(legs))

    def legs(self, batches: int, *, world: int, batch_size: int) -> tuple[Leg, ...]:
        """The legs of the epoch once ``batches`` more are done from here; the inverse of ``after``."""
        return (*self.done, Leg(world=world, batch_size=batch_size, batches=self.first_batch + batches))


def rest_of(plan: EpochPlan, done: Sequence[Leg]) -> EpochPlan:
    """The plan without what the legs saw, in the order in which they were run; identities stay.

    Raises:
        ValueError: when nothing is left.
    """
    for leg in done:
        seen = np.concatenate(list(seen_by(plan, leg)))
        keep = ~np.isin(plan.patches, seen)
        if not keep.any():
            raise ValueError(f"epoch {plan.epoch} is complete after {leg}: go on with the next one")
        of_block = np.add.reduceat(keep, plan.first[:-1])
        plan = replace(
            plan,
            case=plan.case[of_block > 0],
            first=np.cumsum([0, *of_block[of_block > 0]], dtype=np.int64),
            origins_px0=plan.origins_px0[keep],
            patches=plan.patches[keep],
        )
    return plan


def batches_left(plan: EpochPlan, at: Position, *, world: int, batch_size: int) -> int:
    """Batches of each of ``world`` workers from a position to the end of its epoch; of any epoch, as all have as many patches.

    Raises:
        ValueError: when fewer patches are left than there are workers.
    """
    share = Share(plan=rest_of(plan, at.done), rank=0, world=world, batch_size=batch_size)
    return share.num_batches - at.first_batch


def seen_by(plan: EpochPlan, leg: Leg) -> Iterator[NDArray[np.int64]]:
    """Identities of the patches that each worker of a leg had in its batches."""
    for rank in range(leg.world):
        share = Share(plan=plan, rank=rank, world=leg.world, batch_size=leg.batch_size)
        left = share.batch_start(leg.batches)
        for group in share.groups():
            patches = np.concatenate([task.patches for task in group.tasks])[group.order]
            yield patches[:left]
            left -= min(left, len(patches))
            if left == 0:
                break
