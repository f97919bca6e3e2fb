"""Foveation: the field of view, and with it the resolution, is learnt per location.

A small network looks at a coarse context of the patch and weighs the views; weighing and segmentation are trained together.

    all views (B, V, C, *S)
       |--- widest view -> foveation module -> log f (B, V)          where to look
       '--- view v -> backbone -> align -> logits_v (B, K, *S)       what is seen there

| choice       | what is segmented                                       | how gradients reach f                          |
| ------------ | ------------------------------------------------------- | ---------------------------------------------- |
| mean         | every view; posteriors mixed with weights f             | directly                                       |
| mode         | every view in training, weighed by the one-hot argmax f | straight through: hard + soft - soft.detach()  |
| gumbel       | as mode, argmax of log f + Gumbel noise in training     | Gumbel-softmax, straight through               |
| reinforce    | one view drawn from f                                   | (loss - expected).detach() * log f(drawn), and |
|              |                                                         | a reward for being undecided                   |

At evaluation nothing is drawn: mean mixes, the others take the argmax of f, and look at that view alone.

Beside the mixture every view answers for itself (``own_weight``): otherwise the first view that learns anything gets all the weight, the
others no gradient, and what only they could see is never learnt. A view that cannot know must be free to say so: use methods without a
soft Dice term here, which rewards drawing what is merely possible (both measured in docs/experiments.md).

Source: Jin, Tanno, Xu, Mertzanidou, Alexander, Foveation for segmentation of mega-pixel histology images, MICCAI 2020, arXiv
2007.15124. Different here: views are aligned with the target before they are mixed (``blend='posteriors'``); mixing the pixels of
the views before one forward pass, as the paper's Mean does, is ``blend='pixels'``.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayters.gaze.gaze import Losses, Network, check_fields_of_view, eyes_of
from rayters.gaze.several import every_view, mixed_pixels, one_view
from rayters.networks.head import pointwise
from rayters.networks.search_range import choice
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class FoveationGaze:
    """Learns the weight of each field of view from the widest one.

    Raises:
        ValueError: for fewer than two or unordered fields of view, or pixels blended by a hard choice.
    """

    fields_of_view: tuple[float, ...] = (1.0, 2.0, 4.0)
    choose: Literal["mean", "mode", "gumbel", "reinforce"] = choice("mean", "mean", "mode", "gumbel", "reinforce")
    blend: Literal["posteriors", "pixels"] = "posteriors"
    temperature: float = 1.0  # of the Gumbel-softmax
    own_weight: float = 1.0  # of the mean loss of the views, each on its own; 0 trains them by the mixture alone
    entropy_weight: float | None = None  # rewards undecided weights; None: .02 for REINFORCE, else 0

    def __post_init__(self) -> None:
        check_fields_of_view(self.fields_of_view)
        if self.blend == "pixels" and self.choose != "mean":
            raise ValueError(
                f"blend='pixels' mixes the views before the network sees them: it goes with choose='mean', not '{self.choose}'"
            )

    def scales(self) -> tuple[float, ...]:
        """All views are read, each from the pyramid level of its own resolution."""
        return self.fields_of_view

    def build(self, task: Task, network: Network) -> nn.Module:
        """The foveation module, one backbone and one head."""
        return FoveatedEye(task, network, gaze=self)

    def added_loss(self, outputs: dict[str, Tensor], per_patch: Tensor, losses: Losses) -> Tensor:
        """The views' own losses, for REINFORCE the policy's, and the entropy term; of every eye, where a method has two."""
        eyes = eyes_of(outputs)
        log_f = torch.stack([eye["view_log_weights"] for eye in eyes])
        loss = self._entropy_weight * (log_f.exp() * log_f).sum(-1).mean()
        for eye in eyes:  # what peers lose is the mean of both, so that each of these sums is half of one already
            loss = loss + self._of_eye(eye, per_patch, losses)
        return loss

    @property
    def _entropy_weight(self) -> float:
        """A policy that is sure early draws one view only, and never hears of the others: two of three such trainings stayed there."""
        if self.entropy_weight is None:
            return 0.02 if self.choose == "reinforce" else 0.0
        return self.entropy_weight

    def _of_eye(self, eye: dict[str, Tensor], per_patch: Tensor, losses: Losses) -> Tensor:
        """What one eye learns beside the loss of its mixture. The loss of REINFORCE is detached, or the network would climb it."""
        log_f, alone = eye["view_log_weights"], None
        loss = log_f.new_zeros(())
        if self.own_weight and "view_logits" in eye:
            alone = torch.stack([losses(eye | {"logits": logits}) for logits in eye["view_logits"].unbind(1)])
            loss = self.own_weight * alone.mean()
        if self.choose == "reinforce":
            advantage = (per_patch - expected_loss(per_patch, log_f, alone)).detach()
            loss = loss + (advantage * (log_f * eye["view_weights"].detach()).sum(1)).mean()
        return loss


def expected_loss(per_patch: Tensor, log_f: Tensor, alone: Tensor | None) -> Tensor:
    """The baseline of REINFORCE, what a patch costs whichever view is drawn: (B,), independent of the draw, so that no gradient is biased.

    per_patch: (B,) at the drawn view; log_f: (B, V); alone: (V, B) the loss of each view. Where that is not known, the mean of the
    other patches, which leaves in how hard a patch is by itself; 0 for a patch without any other.
    """
    if alone is not None:
        return (log_f.exp() * alone.transpose(0, 1)).sum(1)
    return (per_patch.sum() - per_patch) / max(len(per_patch) - 1, 1)


class FoveatedEye(nn.Module):
    """(B, V, C, *S) -> the chosen mixture, with "view_weights" (B, V) as used and "view_log_weights" (B, V) = log f."""

    def __init__(self, task: Task, network: Network, *, gaze: FoveationGaze) -> None:
        super().__init__()
        self.gaze = gaze
        self.foveate = FoveationModule(task, views=len(gaze.fields_of_view))
        self.backbone = network.build(task.channels, task.patch_px)
        self.head = pointwise(task.axes, network.width, task.classes)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        """views: (B, V, C, *S), ascending in field of view."""
        log_f = self.foveate(views[:, -1])
        return self._look(views, self._weights(log_f)) | {"view_log_weights": log_f}

    def _look(self, views: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Passes of the backbone: one, or as many as views where those that are not chosen teach or are taught too."""
        scales = self.gaze.fields_of_view
        if self.gaze.blend == "pixels":
            return mixed_pixels(self.backbone, self.head, views, weights)
        if self._chosen_decides():
            return one_view(self.backbone, self.head, views, weights.argmax(1), scales)
        return every_view(self.backbone, self.head, views, weights, scales)

    def _chosen_decides(self) -> bool:
        if self.training:
            return self.gaze.choose == "reinforce" and not self.gaze.own_weight
        return self.gaze.choose != "mean"

    def _weights(self, log_f: Tensor) -> Tensor:
        """(B, V), sums to 1 over V: soft for the mean, one-hot otherwise."""
        if self.gaze.choose == "mean":
            return log_f.exp()
        hardest = functional.one_hot(log_f.argmax(1), log_f.shape[1]).to(log_f.dtype)
        if not self.training:
            return hardest
        if self.gaze.choose == "mode":
            return hardest + log_f.exp() - log_f.exp().detach()
        if self.gaze.choose == "gumbel":
            return functional.gumbel_softmax(log_f, tau=self.gaze.temperature, hard=True)
        drawn = torch.multinomial(log_f.detach().exp(), 1).squeeze(1)
        return functional.one_hot(drawn, log_f.shape[1]).to(log_f.dtype)


class FoveationModule(nn.Module):
    """Two small convolutions over the widest view, pooled over all of it, -> log f (B, V): the surroundings have a say, as has the target.

    The paper weighs every pixel of a thumbnail of the whole image, by three convolutions that see a few pixels around it; a patch is one
    such location, and the widest view is its surroundings.
    """

    def __init__(self, task: Task, *, views: int, width: int = 8) -> None:
        super().__init__()
        convolution: Any = nn.Conv2d if task.axes == 2 else nn.Conv3d
        pool: Any = nn.AdaptiveAvgPool2d if task.axes == 2 else nn.AdaptiveAvgPool3d
        kernel = tuple(3 if side > 1 else 1 for side in task.patch_px)
        geometry = {
            "padding": tuple(side // 2 for side in kernel),
            "stride": tuple(2 if side >= 8 else 1 for side in task.patch_px),
        }
        weigh = nn.Linear(2 * width, views)
        nn.init.zeros_(weigh.weight)  # starts undecided: every view has the same weight
        nn.init.zeros_(weigh.bias)
        self.layers = nn.Sequential(
            convolution(task.channels, width, kernel, **geometry),
            nn.GroupNorm(1, width),
            nn.ReLU(),
            convolution(width, 2 * width, kernel, **geometry),
            nn.GroupNorm(1, 2 * width),
            nn.ReLU(),
            pool(1),
            nn.Flatten(),
            weigh,
        )

    def forward(self, widest: Tensor) -> Tensor:
        """widest: (B, C, *S) -> (B, V) log-probabilities."""
        log_f: Tensor = self.layers(widest).log_softmax(1)
        return log_f
