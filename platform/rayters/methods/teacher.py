"""A teacher: the exponential moving average of a network, which looks at the same patches without learning from them.

Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017.
"""

import copy
from typing import Self

import torch
from torch import Tensor, nn


class Taught(nn.Module):
    """A net with a ``teacher``, which looks as at evaluation also while the net learns: at an ensemble's average, at no view by chance."""

    teacher: nn.Module

    def train(self, mode: bool = True) -> Self:
        """Everything but the teacher."""
        super().train(mode)
        self.teacher.eval()
        return self


def teacher_of(student: nn.Module) -> nn.Module:
    """A copy whose parameters take no gradient."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, *, decay: float, steps: Tensor) -> None:
    """Moves the teacher 1 - decay of the way, but never averages over more than the last tenth of all steps so far.

    A slow teacher of a short training would still cling to its first, wrong, weights when it is believed.

    steps: a buffer () int64 of the net, counted up here.
    """
    steps += 1
    reach = max(1 - decay, 10 / (10 + steps.item()))
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.lerp_(fast, reach)


def bare(net: nn.Module) -> nn.Module:
    """The net itself where it is wrapped for distributed training."""
    inner = getattr(net, "module", net)
    assert isinstance(inner, nn.Module)
    return inner
