"""Soft labels with a noise-tolerant loss: the annotators' weighted mean, tempered by anatomy, and an active-passive loss on it.

Source: Felfeliyan et al., Weakly supervised medical image segmentation with soft labels and noise robust loss, ICPR workshops 2022
(arXiv 2209.08172). **Reconstruction**: its abstract is certain (probabilistic labels from several raters and anatomical knowledge;
normalised active-passive loss), the recipe below is ours.

    q = sum_a w_a labels_a / sum_a w_a  ->  inside the region only  ->  q^trust prior^(1-trust)  ->  blurred  ->  [e, 1 - e]

The prior is a map that the cohort brings along (``prior_layer``: where such a structure may lie) or, without one, how the classes look in
the patch itself (``intensity_prior``).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from casebook.labels import IGNORE
from rayters.gaze.gaze import align
from rayters.methods.method import Eye, Loss, Outputs, Prediction, choice, tunable
from rayters.methods.robust import active_passive
from rayters.methods.robust_losses import Variant, per_patch, soft_dice
from rayters.methods.smoothing import blur, geometric_mix, intensity_prior
from rayters.methods.targets import votes
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """A probabilistic target from all annotators, and NCE or NFL + MAE or RCE on it.

    annotator_weights: one per annotator, in the cohort's order; () weighs all alike.
    region: position of an "annotator" whose layer is no opinion but the anatomy, such as the bone: it has no vote, and nothing lies
            outside it. -1: none.
    prior_layer: position of an "annotator" whose layer is the anatomical prior, such as an atlas: where each class usually lies. It has
            no vote; blurred by ``prior_blur_px`` (standard deviation) it is a probability, which takes the intensity prior's place. Where
            it is unknown there is no prior. -1: none.
    prior_trust: how much the annotators are believed against the prior, in [0, 1]; 1 uses no prior.
    clip: the target stays in [clip, 1 - clip]. RCE then never meets log 0: the smallest log q is log(clip), -4.6 with .01, and not the
            -9.21 of one-hot labels, so ``passive`` weighs half of what it does there.
    variant: "confidence_weighted" is the published loss; it ends up over-confident (see robust_losses). "proper" stays calibrated.
    dice: weight of an added soft Dice loss; active-passive losses alone neglect a small foreground.

    Raises:
        ValueError: when a weight, a width or a share is out of its range.
    """

    loss_name: Literal["nce+rce", "nce+mae", "nfl+rce", "nfl+mae"] = choice(
        "nce+rce", "nce+rce", "nce+mae", "nfl+rce", "nfl+mae"
    )
    variant: Variant = choice("confidence_weighted", "confidence_weighted", "proper")
    active: float = tunable(1.0, low=0.1, high=10.0, log=True)
    passive: float = tunable(1.0, low=0.1, high=10.0, log=True)
    gamma: float = tunable(0.5, low=0.0, high=2.0)
    dice: float = tunable(1.0, low=0.0, high=2.0)
    blur_px: float = tunable(1.0, low=0.0, high=2.0)
    prior_trust: float = tunable(0.7, low=0.5, high=1.0)
    clip: float = 0.01
    annotator_weights: tuple[float, ...] = ()
    region: int = -1
    prior_layer: int = -1
    prior_blur_px: float = 8.0

    def __post_init__(self) -> None:
        weights = self.annotator_weights
        if weights and not (min(weights) >= 0 and max(weights) > 0):
            raise ValueError(f"annotator_weights={weights}: none may be negative, and one at least must be positive")
        if min(self.blur_px, self.prior_blur_px) < 0:
            raise ValueError(f"blur_px={self.blur_px}, prior_blur_px={self.prior_blur_px}: a width is not negative")
        if not 0 <= self.prior_trust <= 1 or not 0 <= self.clip < 0.5:
            raise ValueError(f"prior_trust={self.prior_trust} must be in [0, 1], clip={self.clip} in [0, .5)")

    @property
    def needs_identity(self) -> bool:
        """Only where a weight or a role is tied to one annotator."""
        return bool(self.annotator_weights) or max(self._roles) >= 0

    @property
    def _roles(self) -> tuple[int, int]:
        return self.region, self.prior_layer

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """The eye, which hands on the picture where the prior needs it.

        Raises:
            ValueError: when there is not one weight per annotator, no such region or prior layer, or nobody who has a vote.
        """
        if self.annotator_weights and len(self.annotator_weights) != task.annotators:
            raise ValueError(
                f"{len(self.annotator_weights)} annotator_weights for {task.annotators} annotators: give one each"
            )
        if max(self._roles) >= task.annotators:
            raise ValueError(
                f"region={self.region}, prior_layer={self.prior_layer}, but the cohort has {task.annotators} annotators, counted from 0"
            )
        if not any(self._weights(task.annotators)):
            raise ValueError(
                f"no annotator has a vote: weights {self._weights(task.annotators)}, region and prior included"
            )
        return SeeingNet(eye, scale=task.view_scales[0], image=self.prior_trust < 1 and self.prior_layer < 0)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Active-passive loss plus ``dice`` times a soft Dice loss."""
        del progress
        log_p = outputs["logits"].log_softmax(1)
        with torch.no_grad():
            target = self.target(labels, log_p.shape[1], outputs.get("image"))
        robust = active_passive(
            log_p,
            target,
            name=self.loss_name,
            active=self.active,
            passive=self.passive,
            gamma=self.gamma,
            variant=self.variant,
        )
        robust = per_patch(robust, target)
        overlap = soft_dice(log_p, target)
        parts = {"active_passive": robust.detach().mean(), "dice": overlap.detach().mean()}
        return Loss(per_patch=robust + self.dice * overlap, parts=parts)

    def target(self, labels: Tensor, classes: int, image: Tensor | None = None) -> Tensor:
        """The soft label: labels (B, A, *S), image (B, C, *S) or None -> (B, K, *S), zero where nobody with a weight looked."""
        shares = weighted_share(labels, classes, self._weights(labels.shape[1]))
        if self.region >= 0:
            shares = inside(shares, labels[:, self.region])
        shares = geometric_mix(shares, self._prior(shares, labels, image), self.prior_trust)
        looked = shares.sum(1, keepdim=True) > 0
        clipped = blur(shares, self.blur_px).clamp(self.clip, 1 - self.clip)
        return clipped / clipped.sum(1, keepdim=True) * looked

    def _prior(self, shares: Tensor, labels: Tensor, image: Tensor | None) -> Tensor:
        """(B, K, *S), all zero where there is none."""
        if self.prior_layer >= 0:
            return blur(votes(labels[:, self.prior_layer, None], shares.shape[1]), self.prior_blur_px)
        return torch.zeros_like(shares) if image is None else intensity_prior(image, shares)

    def _weights(self, annotators: int) -> tuple[float, ...]:
        weights = self.annotator_weights or (1.0,) * annotators
        return tuple(0.0 if a in self._roles else w for a, w in enumerate(weights))

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""


class SeeingNet(nn.Module):
    """The eye's outputs, and "image" (B, C, *S): the first view on the target's grid, where it is asked for."""

    def __init__(self, eye: Eye, *, scale: float, image: bool) -> None:
        super().__init__()
        self.eye, self.scale, self.image = eye(), scale, image

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats."""
        del labels
        outputs: Outputs = self.eye(views)
        return {**outputs, "image": align(views[:, 0], self.scale)} if self.image else outputs


def weighted_share(labels: Tensor, classes: int, weights: tuple[float, ...]) -> Tensor:
    """The weighted share of annotators, of those who looked, that wrote each class: (B, K, *S); zero where none with a weight looked."""
    total = torch.stack([w * votes(labels[:, a : a + 1], classes) for a, w in enumerate(weights)]).sum(0)
    return total / total.sum(1, keepdim=True).clamp_min(1e-8)


def inside(target: Tensor, region: Tensor) -> Tensor:
    """Background for certain where ``region`` (B, *S) is background; as it was where it is foreground or unknown."""
    outside = ((region == 0) & (region != IGNORE)).unsqueeze(1) & (target.sum(1, keepdim=True) > 0)
    background = torch.zeros_like(target)
    background[:, 0] = 1
    return background.where(outside, target)
