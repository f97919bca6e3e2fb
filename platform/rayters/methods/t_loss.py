"""T-Loss: the error of a whole patch is one draw from a multivariate Student-t, whose tails forgive gross errors.

Source: Gonzalez-Jimenez et al., Robust T-Loss for medical image segmentation, MICCAI 2023. Nothing to tune: nu is learnt.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rayters.methods.method import Eye, Loss, Outputs, Prediction, choice
from rayters.methods.robust_losses import t_loss
from rayters.methods.targets import fused_target
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class TLoss:
    """Student-t negative log-likelihood on a fused target; the degrees of freedom are a parameter of the net."""

    fusion: Literal["vote", "mean"] = choice("vote", "vote", "mean")

    @property
    def needs_identity(self) -> bool:
        """A fusion is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """The eye and one number."""
        del task
        return TLossNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Nats per pixel and foreground class; may be negative, it is the logarithm of a density."""
        del progress
        log_p, log_nu = outputs["logits"].log_softmax(1), outputs["log_nu"][0]
        per_patch = t_loss(log_p, fused_target(labels, log_p.shape[1], self.fusion), log_nu)
        return Loss(per_patch=per_patch, parts={"t_loss": per_patch.detach().mean(), "nu": log_nu.detach().exp()})

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""


class TLossNet(nn.Module):
    """The eye's outputs, and "log_nu" (B,), the same for every patch."""

    def __init__(self, eye: Eye) -> None:
        super().__init__()
        self.eye = eye()
        self.log_nu = nn.Parameter(torch.zeros(()))

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats."""
        del labels
        outputs: Outputs = self.eye(views)
        return {**outputs, "log_nu": self.log_nu.expand(len(views))}
