"""The workers of one run, as the loop sees them: alone, or several that share every batch."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


def _as_it_is(net: nn.Module) -> nn.Module:
    return net


@dataclass(frozen=True, kw_only=True)
class Team:
    """Rank and size of the team, and how its nets are kept alike; the default is one worker alone."""

    rank: int = 0
    size: int = 1
    most: int = 1  # members that may go on from where this team pauses
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = _as_it_is
    shards: bool = False  # whether ``wrap`` cuts parameters up between the members (FSDP2)

    @property
    def leads(self) -> bool:
        """One member writes what all would write alike."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over the team; every member must call it."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values
