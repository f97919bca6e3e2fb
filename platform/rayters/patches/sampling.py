"""How the patches of an epoch are drawn; read by the plan, and by nobody else."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which patches make an epoch, and how far apart in the case the patches of a batch may lie.

    Raises:
        ValueError: when a number is below one.
    """

    patches_per_epoch: int | None = None  # None: every pixel exactly once, on a grid; else so many jittered patches
    balance: Literal["uniform", "class", "disagreement"] = "uniform"  # makes a block likely; needs patches_per_epoch
    patches_per_block: int = 16  # jittered patches cut from a block once it is decoded
    mix_blocks: int = 8  # blocks whose patches are permuted together before they become batches
    border: Literal["ignore", "reflect"] = "ignore"  # labels beyond the case; the image is always mirrored there
    block_px: int | None = None  # side of a block in pixels of the level read; None: near 2048 (2-D), 192 (3-D)

    def __post_init__(self) -> None:
        for name in ("patches_per_epoch", "patches_per_block", "mix_blocks", "block_px"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"sampling.{name} is {value}, expected at least 1")
        if self.balance != "uniform" and self.patches_per_epoch is None:
            raise ValueError(f"balance={self.balance!r} draws patches by weight: say how many with patches_per_epoch")
