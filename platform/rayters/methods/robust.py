"""Robust loss: fuse the annotators first, then train with a loss that forgives what the fusion got wrong.

The baselines of every noisy-label paper: CE, Dice + CE, GCE, SCE, MAE, active-passive sums, NR-Dice.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from rayters.methods import robust_losses as losses
from rayters.methods.method import Eye, Loss, Outputs, Prediction, choice, tunable
from rayters.methods.plain import PlainNet
from rayters.methods.targets import fused_target
from rayters.networks.task import Task

LossName = Literal["ce", "dice+ce", "gce", "sce", "mae", "nce+mae", "nce+rce", "nfl+mae", "nfl+rce", "nr-dice"]


@dataclass(frozen=True, kw_only=True)
class RobustLoss:
    """One of the losses of ``robust_losses`` on a fused target."""

    loss_name: LossName = choice(
        "gce", "ce", "dice+ce", "gce", "sce", "mae", "nce+mae", "nce+rce", "nfl+mae", "nfl+rce", "nr-dice"
    )
    fusion: Literal["vote", "mean"] = choice("vote", "vote", "mean")
    variant: losses.Variant = choice("confidence_weighted", "confidence_weighted", "proper")  # of fusion 'mean' only
    active: float = tunable(1.0, low=0.1, high=10.0, log=True)  # weight of NCE or NFL; of CE in dice+ce
    passive: float = tunable(1.0, low=0.1, high=10.0, log=True)  # weight of MAE or RCE; of Dice in dice+ce
    alpha: float = tunable(0.1, low=0.01, high=10.0, log=True)  # weight of CE in SCE, as published
    beta: float = tunable(1.0, low=0.1, high=10.0, log=True)  # weight of RCE in SCE, as published
    power: float = tunable(0.7, low=0.1, high=1.0)  # of GCE
    gamma: float = tunable(0.5, low=0.0, high=2.0)  # of NFL

    @property
    def needs_identity(self) -> bool:
        """A fusion is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Just the eye."""
        del task
        return PlainNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """The chosen loss; its unit is the loss's own."""
        del progress
        log_p = outputs["logits"].log_softmax(1)
        per_patch = self._of(log_p, fused_target(labels, log_p.shape[1], self.fusion))
        return Loss(per_patch=per_patch, parts={self.loss_name: per_patch.detach().mean()})

    def _of(self, log_p: Tensor, target: Tensor) -> Tensor:
        """(B,)."""
        if self.loss_name == "nr-dice":
            return losses.nr_dice(log_p, target)
        per_patch = losses.per_patch(self._per_pixel(log_p, target), target)
        if self.loss_name == "dice+ce":
            return per_patch + self.passive * losses.soft_dice(log_p, target)
        return per_patch

    def _per_pixel(self, log_p: Tensor, target: Tensor) -> Tensor:
        """(B, *S)."""
        match self.loss_name:
            case "ce" | "dice+ce":
                return self.active * losses.ce(log_p, target)
            case "gce":
                return losses.gce(log_p, target, power=self.power)
            case "sce":
                return losses.sce(log_p, target, alpha=self.alpha, beta=self.beta, variant=self.variant)
            case "mae":
                return losses.mae(log_p, target, variant=self.variant)
        return active_passive(
            log_p,
            target,
            name=self.loss_name,
            active=self.active,
            passive=self.passive,
            gamma=self.gamma,
            variant=self.variant,
        )

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""


def active_passive(
    log_p: Tensor, target: Tensor, *, name: str, active: float, passive: float, gamma: float, variant: losses.Variant
) -> Tensor:
    """active x (NCE or NFL) + passive x (MAE or RCE), by the name "nce+rce" and so on: (B, *S)."""
    first, second = name.split("+")
    rises = (
        losses.nce(log_p, target, variant=variant)
        if first == "nce"
        else losses.nfl(log_p, target, gamma=gamma, variant=variant)
    )
    falls = (losses.mae if second == "mae" else losses.rce)(log_p, target, variant=variant)
    return active * rises + passive * falls
