"""Co-teaching: two networks; each learns only what the other finds easy, for a network learns right labels before wrong ones.

Source: Han et al., Co-teaching, NeurIPS 2018. The released code is told the true noise rate; here it is a field, to be estimated.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from rayters.gaze.gaze import beside
from rayters.methods.method import Eye, Loss, Outputs, Prediction, choice, tunable
from rayters.methods.robust_losses import ce, per_patch
from rayters.methods.targets import fused_target
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class CoTeaching:
    """Cross-entropy on the small-loss share of a batch, chosen by the peer.

    level: "pixel" or "patch": what is kept or left out as a whole.
    noisy_share: of pixels or patches, estimated; left out fully from ``ramp`` of the training on.
    """

    fusion: Literal["vote", "mean"] = choice("vote", "vote", "mean")
    level: Literal["pixel", "patch"] = choice("pixel", "pixel", "patch")
    noisy_share: float = tunable(0.1, low=0.0, high=0.7)
    ramp: float = tunable(0.3, low=0.05, high=0.8)

    @property
    def needs_identity(self) -> bool:
        """A fusion is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Two eyes, initialised differently."""
        del task
        return PeersNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """The mean of the two networks' losses, in nats."""
        first, second = (outputs[name].log_softmax(1) for name in ("logits", "peer_logits"))
        target = fused_target(labels, first.shape[1], self.fusion)
        keep = 1 - self.noisy_share * min(1.0, progress / self.ramp)
        costs = ce(first, target), ce(second, target)
        choose = easy_pixels if self.level == "pixel" else easy_patches
        chosen = [choose(cost.detach(), target, keep) for cost in costs]
        loss = (taught(costs[0], target, chosen[1]) + taught(costs[1], target, chosen[0])) / 2
        return Loss(per_patch=loss, parts={"cross_entropy": loss.detach().mean(), "kept": loss.new_tensor(keep)})

    def predict(self, outputs: Outputs) -> Prediction:
        """The mean of the two posteriors."""
        return Prediction(posterior=(outputs["logits"].softmax(1) + outputs["peer_logits"].softmax(1)) / 2)

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""


class PeersNet(nn.Module):
    """The first eye's outputs and, after "peer_", all of the second's: a gaze that learns where to look does so for each of them."""

    def __init__(self, eye: Eye) -> None:
        super().__init__()
        self.eye, self.peer = eye(), eye()

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats."""
        del labels
        return beside(self.eye(views), self.peer(views))


def easy_pixels(cost: Tensor, target: Tensor, keep: float) -> Tensor:
    """The ``keep`` share of all pixels of the batch that have a target and cost least: (B, *S) bool."""
    has_target = target.sum(1) > 0
    values = cost[has_target]
    if values.numel() == 0:
        return has_target
    limit = values.kthvalue(max(1, round(keep * values.numel()))).values
    return has_target & (cost <= limit)


def easy_patches(cost: Tensor, target: Tensor, keep: float) -> Tensor:
    """The ``keep`` share of the patches that have a target, at least one, whose mean cost is least: (B, *S) bool, whole patches."""
    has_target = target.sum(1) > 0
    drawn = has_target.flatten(1).any(1)
    mean = per_patch(cost, target)
    values = mean[drawn]  # one without a target costs nothing, and would pass for the easiest
    if values.numel() == 0:
        return has_target
    limit = values.kthvalue(max(1, round(keep * values.numel()))).values
    return (mean <= limit).view(-1, *(1,) * (cost.ndim - 1)) & has_target


def taught(cost: Tensor, target: Tensor, chosen: Tensor) -> Tensor:
    """The cost of what was chosen, (B,), scaled so that the mean over the batch is that over all chosen pixels that have a target."""
    chosen = chosen & (target.sum(1) > 0)
    return (cost * chosen).flatten(1).sum(1) * (len(cost) / chosen.sum().clamp(min=1))
