"""A teacher: the exponential moving average of a network, which looks at the same patches without learning from them.

Source: Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017.
"""

import copy

import torch
from torch import Tensor, nn


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
