"""One step: patches to the device, forward, loss, backward, update.

Shapes: B batch, V views, C channels, A annotators, S the spatial axes.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rayters.networks.task import Task
from rayters.training.augment import augment
from rayters.training.device import Arrays, Columns, on_device
from rayters.training.learner import Learner
from rayters.training.run import Run
from rayters.training.schedule import learning_rate


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


def autocast(run: Run, device: torch.device) -> AbstractContextManager[Any]:
    """The lower precision that is asked for; 'auto' is bfloat16 on a GPU that has it, else none."""
    lower = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(run.precision)
    if run.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        lower = torch.bfloat16
    return torch.autocast(device.type, dtype=lower, enabled=lower is not None)


def train_step(learner: Learner, batch: Batch, progress: float) -> dict[str, Tensor]:
    """Updates the net once and returns the loss and its parts, detached.

    Raises:
        FloatingPointError: when the loss is not finite; nothing has been updated then.
    """
    run, optimizer, scaler = learner.run, learner.optimizer, learner.scaler
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(run.schedule, run.learning_rate, progress)
    optimizer.zero_grad(set_to_none=True)
    parts = _accumulate(learner, batch, progress)
    if run.gradient_clip:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(learner.bare.parameters(), run.gradient_clip)
    scaler.step(optimizer)
    scaler.update()
    run.method.after_step(learner.bare, progress)
    if learner.average is not None:
        learner.average.update_parameters(learner.bare)
    return parts


def _accumulate(learner: Learner, batch: Batch, progress: float) -> dict[str, Tensor]:
    """Gradients of the whole batch, a part of it in memory at a time; members of a team exchange them once, with the last part."""
    count = len(batch.labels)
    portions = range(0, count, -(-count // learner.run.accumulate))
    width = portions.step
    sums: dict[str, Tensor] = {}
    for first in portions:
        part = Batch(views=batch.views[first : first + width], labels=batch.labels[first : first + width])
        with nullcontext() if first + width >= count else learner.without_exchange():
            losses = _backward(learner, part, progress, weight=len(part.labels) / count)
        sums = {name: sums.get(name, 0) + value * len(part.labels) / count for name, value in losses.items()}
    return sums


def _backward(learner: Learner, batch: Batch, progress: float, weight: float) -> dict[str, Tensor]:
    run = learner.run
    with autocast(run, batch.views.device):
        outputs = learner.net(batch.views, batch.labels)
    outputs = {name: value.float() for name, value in outputs.items()}  # losses live in log space: full precision
    loss = run.method.loss(outputs, batch.labels, progress)
    total = loss.total + run.gaze.added_loss(
        outputs, loss.per_patch.detach(), lambda other: run.method.loss(other, batch.labels, progress).per_patch
    )
    if not torch.isfinite(total):
        raise FloatingPointError(
            f"the loss is {total.item()} at {progress:.1%} of the training: lower learning_rate={run.learning_rate}"
        )
    learner.scaler.scale(total * weight).backward()  # type: ignore[no-untyped-call]
    return {"loss": total.detach(), **loss.parts}
