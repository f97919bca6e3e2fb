"""Random annotator: at every step believe one annotator, drawn anew; a strong and cheap probabilistic baseline.

The expected gradient is that of the mean labels, but a patch is always consistent with one person.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from casebook.labels import IGNORE
from rayters.methods.method import Eye, Loss, Outputs, Prediction
from rayters.methods.targets import hard_cross_entropy, mean_labels, soft_cross_entropy
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class RandomAnnotator:
    """Cross-entropy against one annotator per patch and step, drawn among those who looked at some of it."""

    @property
    def needs_identity(self) -> bool:
        """Whoever is drawn is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """The eye, and the dice."""
        return DrawingNet(task, eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Cross-entropy in nats; of a net that drew nobody, as at validation, its expectation."""
        del progress
        logits = outputs["logits"]
        if "draw" in outputs:
            per_patch = hard_cross_entropy(logits, drawn_labels(labels, outputs["draw"]))
        else:
            per_patch = soft_cross_entropy(logits, mean_labels(labels, logits.shape[1]))
        return Loss(per_patch=per_patch, parts={"cross_entropy": per_patch.detach().mean()})

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""


class DrawingNet(nn.Module):
    """The eye's outputs, and in training "draw" (B, A): random scores, the highest of those who looked wins."""

    def __init__(self, task: Task, eye: Eye) -> None:
        super().__init__()
        self.eye, self.annotators = eye(), task.annotators

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats."""
        outputs: Outputs = self.eye(views)
        if labels is None:
            return outputs
        return {**outputs, "draw": torch.rand(len(views), self.annotators, device=views.device)}


def drawn_annotator(labels: Tensor, draw: Tensor) -> Tensor:
    """Who has the highest score among those who looked at any pixel: labels (B, A, *S), draw (B, A) in [0, 1) -> (B,) int64."""
    looked = (labels != IGNORE).flatten(2).any(2)
    return draw.where(looked, torch.full_like(draw, -1)).argmax(1)


def drawn_labels(labels: Tensor, draw: Tensor) -> Tensor:
    """What that annotator wrote, (B, *S)."""
    return labels[torch.arange(len(labels), device=labels.device), drawn_annotator(labels, draw)]
