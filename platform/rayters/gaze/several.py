"""Three gazes that look at several fields of view without choosing: random, average and ensemble, the baselines of Jin et al. 2020.

Shapes: B batch, V views, C channels, K classes, F features, S the spatial axes of the target.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rayters.gaze.gaze import Losses, Network, align, check_fields_of_view
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

    def added_loss(self, outputs: dict[str, Tensor], per_patch: Tensor, losses: Losses) -> Tensor:
        """Nothing is learnt about where to look."""
        del outputs, losses
        return per_patch.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class AverageGaze:
    """One network sees every field of view of every patch, with equal weights.

    blend: its aligned features and "posteriors" are averaged; or the "pixels" of the views, before one pass, as the paper's Average
           does, which leaves their alignment to the network to learn.
    """

    fields_of_view: tuple[float, ...] = (1.0, 2.0, 4.0)
    blend: Literal["posteriors", "pixels"] = "posteriors"

    def __post_init__(self) -> None:
        check_fields_of_view(self.fields_of_view)

    def scales(self) -> tuple[float, ...]:
        """All of them, always."""
        return self.fields_of_view

    def build(self, task: Task, network: Network) -> nn.Module:
        """One backbone, one head."""
        return SharedEye(task, network, scales=self.fields_of_view, blend=self.blend)

    def added_loss(self, outputs: dict[str, Tensor], per_patch: Tensor, losses: Losses) -> Tensor:
        """Nothing is learnt about where to look."""
        del outputs, losses
        return per_patch.new_zeros(())


@dataclass(frozen=True, kw_only=True)
class EnsembleGaze:
    """One network *per* field of view, each trained on its own, posteriors averaged: the strongest baseline of the papers.

    Each patch of a training goes to one of the networks, so that a step costs what a fixed gaze's does; as many epochs as there are
    fields of view train every network as long as a fixed gaze. (Trained on their average, networks that cannot know a patch and one
    that can only learn together, and did not: Dice 0 where apart they reach .9, see docs/experiments.md.)
    """

    fields_of_view: tuple[float, ...] = (1.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        check_fields_of_view(self.fields_of_view)

    def scales(self) -> tuple[float, ...]:
        """All of them, always."""
        return self.fields_of_view

    def build(self, task: Task, network: Network) -> nn.Module:
        """As many backbones as views."""
        return EnsembleEye(task, network, scales=self.fields_of_view)

    def added_loss(self, outputs: dict[str, Tensor], per_patch: Tensor, losses: Losses) -> Tensor:
        """Nothing is learnt about where to look."""
        del outputs, losses
        return per_patch.new_zeros(())


def mixture(logits: Tensor, features: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Mixes aligned views: posteriors add up with their weights, and so do features.

    logits: (B, V, K, *S); features: (B, V, F, *S); weights: (B, V), sum to 1 over V. The mixed logits (B, K, *S) are the logarithm of
    the mixed posterior, so that a softmax returns it; "view_logits" are the views' own. Posteriors are added as such, not in log space:
    a view of weight zero must still tell a straight-through gradient how well it would have done.
    """
    shaped = weights.view(*weights.shape, *(1,) * (logits.ndim - 2))
    posterior = (logits.float().softmax(2) * shaped).sum(1)
    return {
        "logits": posterior.clamp_min(torch.finfo(posterior.dtype).tiny).log(),
        "features": (features * shaped).sum(1),
        "view_weights": weights,
        "view_logits": logits,
    }


def one_view(
    backbone: nn.Module, head: nn.Module, views: Tensor, chosen: Tensor, scales: tuple[float, ...]
) -> dict[str, Tensor]:
    """What each patch shows at one of its views, in a single pass: what ``mixture`` makes of one-hot weights, at 1/V of the cost.

    views: (B, V, C, *S); chosen: (B,) int64 in [0, V).
    """
    patches = torch.arange(views.shape[0], device=views.device)  # len() would fix the batch of an exported net
    seen = views[patches, chosen]
    features = align(backbone(seen), torch.tensor(scales, device=views.device)[chosen])
    weights = nn.functional.one_hot(chosen, len(scales)).to(views.dtype)
    return {"logits": head(features), "features": features, "view_weights": weights}


def every_view(
    backbone: nn.Module, head: nn.Module, views: Tensor, weights: Tensor, scales: tuple[float, ...]
) -> dict[str, Tensor]:
    """The mixture of all views of each patch, a pass for each. views: (B, V, C, *S); weights: (B, V), sum to 1 over V."""
    features = torch.stack([align(backbone(views[:, v]), scale) for v, scale in enumerate(scales)], dim=1)
    logits = torch.stack([head(features[:, v]) for v in range(len(scales))], dim=1)
    return mixture(logits, features, weights)


def mixed_pixels(backbone: nn.Module, head: nn.Module, views: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """One pass over the weighted sum of the views, pixel by pixel: (B, V, C, *S) and (B, V), sum to 1 over V."""
    features = backbone((views * weights.view(*weights.shape, *(1,) * (views.ndim - 2))).sum(1))
    return {"logits": head(features), "features": features, "view_weights": weights}


class SharedEye(nn.Module):
    """All views through one backbone: (B, V, C, *S) -> their even mixture; of one drawn view per patch in a training with ``draw``."""

    def __init__(
        self, task: Task, network: Network, *, scales: tuple[float, ...], draw: bool = False, blend: str = "posteriors"
    ) -> None:
        super().__init__()
        self.scales, self.draw, self.blend = scales, draw, blend
        self.backbone = network.build(task.channels, task.patch_px)
        self.head = pointwise(task.axes, network.width, task.classes)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        """views: (B, V, C, *S)."""
        if self.draw and self.training:
            drawn = torch.randint(len(self.scales), (len(views),), device=views.device)
            return one_view(self.backbone, self.head, views, drawn, self.scales)
        even = views.new_full(views.shape[:2], 1 / len(self.scales))
        if self.blend == "pixels":
            return mixed_pixels(self.backbone, self.head, views, even)
        return every_view(self.backbone, self.head, views, even, self.scales)


class EnsembleEye(nn.Module):
    """Each view through a backbone of its own: (B, V, C, *S) -> the mixture; in training, of each patch what one of them sees."""

    def __init__(self, task: Task, network: Network, *, scales: tuple[float, ...]) -> None:
        super().__init__()
        self.scales = scales
        self.backbones = nn.ModuleList(network.build(task.channels, task.patch_px) for _ in scales)
        self.heads = nn.ModuleList(pointwise(task.axes, network.width, task.classes) for _ in scales)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        """views: (B, V, C, *S)."""
        if self.training:
            return self._apart(views)
        features = torch.stack([align(net(views[:, v]), self.scales[v]) for v, net in enumerate(self.backbones)], dim=1)
        logits = torch.stack([head(features[:, v]) for v, head in enumerate(self.heads)], dim=1)
        return mixture(logits, features, views.new_full(views.shape[:2], 1 / len(self.scales)))

    def _apart(self, views: Tensor) -> dict[str, Tensor]:
        """Patches are dealt out; every network gets equally many, the last ones twice, so that none is ever without a gradient."""
        count, members = views.shape[:2]
        each = -(-count // members)
        order = torch.randperm(count, device=views.device)
        hands = order.repeat(members)[: each * members].view(members, each)
        back = order.argsort()  # what was dealt twice counts where it was dealt first
        seen = [
            align(net(views[hand, v]), self.scales[v])
            for v, (net, hand) in enumerate(zip(self.backbones, hands, strict=True))
        ]
        logits = torch.cat([head(mine) for head, mine in zip(self.heads, seen, strict=True)])[:count][back]
        member = (torch.arange(count, device=views.device) // each)[back]
        weights = nn.functional.one_hot(member, members).to(views.dtype)
        return {"logits": logits, "features": torch.cat(seen)[:count][back], "view_weights": weights}
