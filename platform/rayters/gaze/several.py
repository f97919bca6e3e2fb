"""Three gazes that look at several fields of view without choosing: random, average and ensemble, the baselines of Jin et al. 2020.

Shapes: B batch, V views, C channels, K classes, F features, S the spatial axes of the target.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayters.gaze.gaze import Network, align, check_fields_of_view
from rayters.networks.head import pointwise
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class RandomGaze:
    """One network; each patch of the training is seen at a field of view drawn at random, and at evaluation at all of them, averaged.

    (The released code draws at evaluation too, which makes inference a lottery.)
    """

    fields_of_view: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        check_fields_of_view(self.fields_of_view)

    def scales(self) -> tuple[float, ...]:
        """All of them are read; one is used."""
        return self.fields_of_view

    def build(self, task: Task, network: Network) -> nn.Module:
        """One backbone, one head."""
        return SharedEye(task, network, scales=self.fields_of_view, draw=True)

    def policy_loss(self, outputs: dict[str, Tensor], per_patch: Tensor) -> Tensor:
        """Nothing is learnt about where to look."""
        del outputs
        return per_patch.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class AverageGaze:
    """One network sees every field of view of every patch; its aligned features and posteriors are averaged with equal weights."""

    fields_of_view: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        check_fields_of_view(self.fields_of_view)

    def scales(self) -> tuple[float, ...]:
        """All of them, always."""
        return self.fields_of_view

    def build(self, task: Task, network: Network) -> nn.Module:
        """One backbone, one head."""
        return SharedEye(task, network, scales=self.fields_of_view, draw=False)

    def policy_loss(self, outputs: dict[str, Tensor], per_patch: Tensor) -> Tensor:
        """Nothing is learnt about where to look."""
        del outputs
        return per_patch.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class EnsembleGaze:
    """One network *per* field of view, posteriors averaged: V times the parameters, the strongest baseline of the papers."""

    fields_of_view: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        check_fields_of_view(self.fields_of_view)

    def scales(self) -> tuple[float, ...]:
        """All of them, always."""
        return self.fields_of_view

    def build(self, task: Task, network: Network) -> nn.Module:
        """As many backbones as views."""
        return EnsembleEye(task, network, scales=self.fields_of_view)

    def policy_loss(self, outputs: dict[str, Tensor], per_patch: Tensor) -> Tensor:
        """Nothing is learnt about where to look."""
        del outputs
        return per_patch.new_zeros(())


def mixture(logits: Tensor, features: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Mixes aligned views: posteriors add up with their weights, and so do features.

    logits: (B, V, K, *S); features: (B, V, F, *S); weights: (B, V), sum to 1 over V. The mixed logits (B, K, *S) are the logarithm of
    the mixed posterior, so that a softmax returns it.
    """
    shaped = weights.view(*weights.shape, *(1,) * (logits.ndim - 2))
    log_posterior = (logits.log_softmax(2) + shaped.clamp_min(1e-12).log()).logsumexp(1)
    return {"logits": log_posterior, "features": (features * shaped).sum(1), "view_weights": weights}


class SharedEye(nn.Module):
    """All views through one backbone: (B, V, C, *S) -> the mixture of the aligned views, or of one drawn view per patch in training."""

    def __init__(self, task: Task, network: Network, *, scales: tuple[float, ...], draw: bool) -> None:
        super().__init__()
        self.scales, self.draw = scales, draw
        self.backbone = network.build(task.channels, task.patch_px)
        self.head = pointwise(task.axes, network.width, task.classes)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        """views: (B, V, C, *S)."""
        weights = views.new_full(views.shape[:2], 1 / len(self.scales))
        if self.draw and self.training:
            drawn = torch.randint(len(self.scales), (len(views),), device=views.device)
            weights = nn.functional.one_hot(drawn, len(self.scales)).to(views.dtype)
        features = torch.stack([align(self.backbone(views[:, v]), scale) for v, scale in enumerate(self.scales)], dim=1)
        logits = torch.stack([self.head(features[:, v]) for v in range(len(self.scales))], dim=1)
        return mixture(logits, features, weights)


class EnsembleEye(nn.Module):
    """Each view through a backbone of its own. The loss is that of the members' mixture, so that any method trains the ensemble."""

    def __init__(self, task: Task, network: Network, *, scales: tuple[float, ...]) -> None:
        super().__init__()
        self.scales = scales
        self.backbones = nn.ModuleList(network.build(task.channels, task.patch_px) for _ in scales)
        self.heads = nn.ModuleList(pointwise(task.axes, network.width, task.classes) for _ in scales)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        """views: (B, V, C, *S)."""
        features = torch.stack([align(net(views[:, v]), self.scales[v]) for v, net in enumerate(self.backbones)], dim=1)
        logits = torch.stack([head(features[:, v]) for v, head in enumerate(self.heads)], dim=1)
        return mixture(logits, features, views.new_full(views.shape[:2], 1 / len(self.scales)))
