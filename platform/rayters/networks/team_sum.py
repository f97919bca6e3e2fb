"""Statistics that a net counts while it trains, over all processes that train it."""

import torch
from torch import Tensor, distributed


@torch.no_grad()
def team_sum(*values: Tensor) -> list[Tensor]:
    """Each tensor summed over the processes of a distributed training, in one exchange; as it is where a net trains alone.

    Without it every process would count its own share of a batch, DDP would hand the first one's around, and the rest would be lost.
    All processes must call it alike: in the forward pass of a training step.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return list(values)
    packed = torch.cat([value.flatten().double() for value in values])
    distributed.all_reduce(packed)
    parts = torch.split(packed, [value.numel() for value in values])
    return [part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True)]
