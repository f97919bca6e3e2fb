"""One step: patches to the device, forward, loss, backward, update.

Shapes: B batch, V views, C channels, A annotators, S the spatial axes.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rayters.networks.task import Task
from rayters.training.augment import augment
from rayters.training.device import Arrays, Columns, on_device
from rayters.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Patches on the device: views (B, V, C, *S) normalised floats, labels (B, A, *S) int64 with IGNORE."""

    views: Tensor
    labels: Tensor


def to_device(arrays: Arrays, task: Task, device: torch.device) -> Batch:
    """One batch on its own, normalised there; a training overlaps the copies, see ``on_device``."""
    (columns,) = on_device([arrays], device)
    return plain(columns, task)


def plain(columns: Columns, task: Task) -> Batch:
    """Patches as they were read, normalised."""
    views = columns["views"]
    return Batch(views=normalised(views, task, views.device), labels=columns["labels"].long())


def normalised(views: NDArray[Any] | Tensor, task: Task, device: torch.device) -> Tensor:
    """(B, V, C, *S) in the stored dtype, which is small -> floats on the device, (x - mean) / std per channel of the training cases."""
    mean, std = _moments(task, device)
    per_channel = (1, 1, -1) + (1,) * task.axes
    return (torch.as_tensor(views, device=device).float() - mean.view(per_channel)) / std.view(per_channel)


def augmented(columns: Columns, run: Run, task: Task) -> Batch:
    """The same, moved and recoloured as ``run.augmentation`` says; the identity of a patch and the run's seed decide how."""
    if run.augmentation.is_off:
        return plain(columns, task)
    mean, std = _moments(task, columns["views"].device)
    views, labels = augment(
        columns["views"], columns["labels"], columns["patch"].cpu(),
        augmentation=run.augmentation, seed=run.seed, scales=task.view_scales, mean=mean, std=std,
    )  # fmt: skip
    return Batch(views=views, labels=labels.long())


def _moments(task: Task, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(task.mean, device=device), torch.tensor(task.std, device=device)


def learning_rate(run: Run, progress: float) -> float:
    """One cycle: up from a tenth over the first 30 %, then down to a hundredth along a cosine; a pure function of progress."""
    rise = 0.3
    if progress < rise:
        return run.learning_rate * (0.1 + 0.9 * progress / rise)
    fall = 0.5 + 0.5 * float(np.cos(np.pi * (progress - rise) / (1 - rise)))
    return run.learning_rate * (0.01 + 0.99 * fall)


def autocast(run: Run, device: torch.device) -> AbstractContextManager[Any]:
    """bfloat16 where asked for, or where 'auto' finds a GPU that has it."""
    wanted = run.precision == "bfloat16" or (
        run.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)


def train_step(
    run: Run, net: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, progress: float
) -> dict[str, Tensor]:
    """Updates the net once and returns the parts of the loss, detached.

    Raises:
        FloatingPointError: when the loss is not finite; nothing has been updated then.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(run, progress)
    with autocast(run, batch.views.device):
        outputs = net(batch.views, batch.labels)
    outputs = {name: value.float() for name, value in outputs.items()}  # losses live in log space: full precision
    loss = run.method.loss(outputs, batch.labels, progress)
    total = loss.total + run.gaze.policy_loss(outputs, loss.per_patch.detach())
    if not torch.isfinite(total):
        raise FloatingPointError(
            f"the loss is {total.item()} at {progress:.1%} of the training: lower learning_rate={run.learning_rate}"
        )
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    if run.gradient_clip:
        nn.utils.clip_grad_norm_(net.parameters(), run.gradient_clip)
    optimizer.step()
    run.method.after_step(net, progress)
    return {"loss": total.detach(), **loss.parts}
