"""From several annotators' labels to one target per pixel.

Shapes: B batch, A annotators, K classes, S the spatial axes. Labels are (B, A, *S) int64 in [0, K) or IGNORE.
"""

import torch
from torch import Tensor
from torch.nn import functional

from casebook.labels import IGNORE


def one_hots(labels: Tensor, classes: int) -> Tensor:
    """What each annotator wrote: (B, A, K, *S) floats, all zero where one did not look."""
    seen = labels != IGNORE
    rows = functional.one_hot(labels.where(seen, torch.zeros_like(labels)), classes).movedim(-1, 2)
    return (rows * seen.unsqueeze(2)).float()


def votes(labels: Tensor, classes: int) -> Tensor:
    """How many annotators wrote each class: (B, K, *S) floats; a pixel that nobody looked at is all zero."""
    return one_hots(labels, classes).sum(1)


def mean_labels(labels: Tensor, classes: int) -> Tensor:
    """The share of annotators, of those who looked, that wrote each class: (B, K, *S), sums to 1 over K, or to 0 where nobody looked."""
    counts = votes(labels, classes)
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def majority(labels: Tensor, classes: int) -> Tensor:
    """The class that most annotators wrote, the lowest of equals: (B, *S) int64, IGNORE where nobody looked.

    The lowest of equals is usually background: a structure is there when more than half of the annotators say so.
    """
    counts = votes(labels, classes)
    return counts.argmax(1).where(counts.sum(1) > 0, torch.full_like(labels[:, 0], IGNORE))


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of each patch, in nats, over the pixels that have a target.

    logits: (B, K, *S); target: (B, K, *S) probabilities, all zero where there is no target. Returns (B,); 0 without any target.
    """
    spatial = tuple(range(1, logits.ndim - 1))
    per_pixel = -(target * logits.log_softmax(1)).sum(1)
    return per_pixel.sum(spatial) / target.sum(1).sum(spatial).clamp(min=1)


def hard_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of each patch, in nats. logits: (B, K, *S); target: (B, *S) int64 or IGNORE. Returns (B,)."""
    spatial = tuple(range(1, logits.ndim - 1))
    per_pixel = functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    return per_pixel.sum(spatial) / (target != IGNORE).sum(spatial).clamp(min=1)


def fused_target(labels: Tensor, classes: int, fusion: str) -> Tensor:
    """One target per pixel from all annotators: (B, K, *S) probabilities, all zero where nobody looked.

    fusion: "vote" is one-hot at the majority, "mean" the share of the annotators who looked.
    """
    if fusion == "mean":
        return mean_labels(labels, classes)
    return votes(majority(labels, classes).unsqueeze(1), classes)


def one_hot_top(maps: Tensor) -> Tensor:
    """The most probable class as a one-hot target, (B, K, *S) -> (B, K, *S); the lowest of equals."""
    return functional.one_hot(maps.argmax(1), maps.shape[1]).movedim(-1, 1).to(maps.dtype)
