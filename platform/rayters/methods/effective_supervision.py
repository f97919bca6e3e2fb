"""Effective supervision: where the network is unsure, lean on its own steadier opinion; where a picture is suspect, use it otherwise.

Source: Shi and Wu, Distilling effective supervision for robust medical image segmentation with noisy labels, MICCAI 2021 (arXiv
2106.11099). **Reconstruction**: its abstract is certain (pixel-wise noise estimation; pixel-wise learning from original and pseudo
labels; image-level learning as a complement), the choices below are ours, each a field.

pixel:  u = entropy of the teacher's mean over ``passes`` noisy looks, in [0, 1], no gradient
        loss = v CE(p, label) + w CE(p, pseudo label), over the sum of both weights; v and w by ``pixel_rule``
image:  the ``noisy_share`` of the patches of a batch with the highest score are not dropped, but learn from pseudo labels

All networks are unsure along *every* boundary, of right labels too. There the label is kept: ``boundary_px`` on either side of it.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayters.methods.method import Eye, Loss, Outputs, Prediction, choice, tunable
from rayters.methods.robust_losses import ce, per_patch, soft_dice
from rayters.methods.targets import fused_target
from rayters.methods.teacher import Taught, bare, follow, teacher_of
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class EffectiveSupervision:
    """Pixel-wise and image-wise robust learning with an averaged teacher.

    warm_up: share of the training that is plain supervision, before any estimate is believed.
    pixel_rule: "correct" believes the label where the teacher agrees, the teacher where it disagrees and is sure (u < ``sure``), and
                the label with weight 1 - u where it disagrees but is unsure. "blend" has v = 1 - u, w = u: a network that is unsure
                everywhere then teaches itself. "none" believes labels.
    image_rule: how patches are ranked: "loss" of the teacher against the labels, "uncertainty" mean u, "none".
    noisy_share: of patches, estimated; reached half-way through the training.
    """

    fusion: Literal["vote", "mean"] = choice("vote", "vote", "mean")
    warm_up: float = tunable(0.3, low=0.05, high=0.5)
    pixel_rule: Literal["correct", "blend", "none"] = choice("correct", "correct", "blend", "none")
    sure: float = tunable(0.3, low=0.05, high=0.8)
    boundary_px: int = 1
    image_rule: Literal["loss", "uncertainty", "none"] = choice("loss", "loss", "uncertainty", "none")
    noisy_share: float = tunable(0.3, low=0.0, high=0.8)
    pseudo_weight: float = tunable(1.0, low=0.1, high=2.0)  # of the noisy patches, once ramped up
    dice: float = tunable(0.0, low=0.0, high=1.0)  # weight of a soft Dice loss beside the cross-entropy
    passes: int = 2  # noisy looks of the teacher
    look_noise: float = 0.2  # standard deviation of the Gaussian noise of a look, in units of the normalised image
    decay: float = tunable(0.99, low=0.9, high=0.999)

    @property
    def needs_identity(self) -> bool:
        """A fusion is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """The eye and its teacher."""
        del task
        return SupervisedNet(eye, passes=self.passes, look_noise=self.look_noise)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Cross-entropy plus ``dice`` times soft Dice; plain in the warm-up and at validation."""
        log_p = outputs["logits"].log_softmax(1)
        target = fused_target(labels, log_p.shape[1], self.fusion)
        if "teacher" not in outputs or progress < self.warm_up:
            plain = self._supervised(log_p, target)
            return Loss(per_patch=plain, parts={"supervised": plain.detach().mean()})
        teacher = outputs["teacher"].detach()
        unsure, pseudo = uncertainty(teacher), one_hot_top(teacher)
        pixelwise = self._pixelwise(log_p, target, pseudo, unsure)
        noisy = self._noisy(target, teacher, unsure, progress)
        ramp = math.exp(-5 * (1 - progress) ** 2)
        loss = pixelwise.where(~noisy, self.pseudo_weight * ramp * self._supervised(log_p, pseudo))
        return Loss(
            per_patch=loss,
            parts={
                "supervised": pixelwise.detach().mean(),
                "uncertainty": unsure.mean(),
                "noisy_patches": noisy.float().mean(),
            },
        )

    def _supervised(self, log_p: Tensor, target: Tensor) -> Tensor:
        return per_patch(ce(log_p, target), target) + self._dice(log_p, target)

    def _pixelwise(self, log_p: Tensor, target: Tensor, pseudo: Tensor, unsure: Tensor) -> Tensor:
        """The pixel loss from original labels and pseudo labels: (B,)."""
        label, own = pixel_weights(target, pseudo, unsure, rule=self.pixel_rule, sure=self.sure)
        kept = near_boundary(target, self.boundary_px)
        looked = target.sum(1) > 0
        label, own = label.where(~kept, torch.ones_like(label)) * looked, own * ~kept * looked
        cost = (label * ce(log_p, target) + own * ce(log_p, pseudo)).flatten(1).sum(1)
        believed = target.lerp(pseudo, (own / (label + own).clamp_min(1e-6)).unsqueeze(1))
        return cost / (label + own).flatten(1).sum(1).clamp_min(1) + self._dice(log_p, believed)

    def _dice(self, log_p: Tensor, target: Tensor) -> Tensor:
        return self.dice * soft_dice(log_p, target) if self.dice else log_p.new_zeros(len(log_p))

    def _noisy(self, target: Tensor, teacher: Tensor, unsure: Tensor, progress: float) -> Tensor:
        """Which patches of the batch are the most suspect: (B,) bool."""
        share = self.noisy_share * min(1.0, (progress - self.warm_up) / max(0.5 - self.warm_up, 1e-6))
        count = int(share * len(target)) if self.image_rule != "none" else 0
        if count == 0:
            return torch.zeros(len(target), dtype=torch.bool, device=target.device)
        disagreement = ce(teacher.clamp_min(1e-6).log(), target) if self.image_rule == "loss" else unsure
        score = band_mean(disagreement, target, teacher)
        return score >= score.topk(count).values[-1]

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the student's logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """The teacher follows."""
        inner = bare(net)
        assert isinstance(inner, SupervisedNet)
        follow(inner.teacher, inner.eye, decay=self.decay, steps=inner.steps)


class SupervisedNet(Taught):
    """The eye's outputs; in training also "teacher" (B, K, *S): the teacher's posterior, mean over noisy looks, without gradient."""

    steps: Tensor

    def __init__(self, eye: Eye, *, passes: int, look_noise: float) -> None:
        super().__init__()
        self.eye = eye()
        self.teacher = teacher_of(self.eye)
        self.passes, self.look_noise = passes, look_noise
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats."""
        outputs: Outputs = self.eye(views)
        if labels is None or not self.training:
            return outputs
        with torch.no_grad():
            looks = [self.teacher(views + self.look_noise * torch.randn_like(views)) for _ in range(self.passes)]
            mean = torch.stack([look["logits"].softmax(1) for look in looks]).mean(0)
        return {**outputs, "teacher": mean}


def uncertainty(posterior: Tensor) -> Tensor:
    """Entropy / log K: (B, K, *S) -> (B, *S) in [0, 1], without gradient: a network must not become unsure to escape its loss."""
    p = posterior.detach()
    return -torch.xlogy(p, p).sum(1) / math.log(p.shape[1])


def one_hot_top(posterior: Tensor) -> Tensor:
    """The most probable class as a one-hot target, (B, K, *S)."""
    return functional.one_hot(posterior.argmax(1), posterior.shape[1]).movedim(-1, 1).to(posterior.dtype)


def pixel_weights(target: Tensor, pseudo: Tensor, unsure: Tensor, *, rule: str, sure: float) -> tuple[Tensor, Tensor]:
    """How much a pixel believes its label, and how much the pseudo label: two (B, *S) in [0, 1]."""
    one = torch.ones_like(unsure)
    if rule == "none":
        return one, 0 * one
    if rule == "blend":
        return 1 - unsure, unsure
    disagree = target.argmax(1) != pseudo.argmax(1)
    corrected = (disagree & (unsure < sure)).to(unsure.dtype)
    return one.where(~disagree, 1 - unsure) * (1 - corrected), corrected


def near_boundary(target: Tensor, width_px: int) -> Tensor:
    """Pixels within ``width_px`` of where the label changes, along an axis: (B, *S) bool; a width of 0 exempts nothing."""
    label = target.argmax(1)
    near = torch.zeros_like(label, dtype=torch.bool)
    for axis in range(1, label.ndim) if width_px > 0 else ():
        change = label.narrow(axis, 1, label.shape[axis] - 1) != label.narrow(axis, 0, label.shape[axis] - 1)
        near.narrow(axis, 1, label.shape[axis] - 1).logical_or_(change)
        near.narrow(axis, 0, label.shape[axis] - 1).logical_or_(change)
    return _widen(near, width_px - 1)


def band_mean(values: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the labelled or predicted foreground of a patch, (B, *S) -> (B,): over all pixels a few wrong ones would vanish.

    Over everything that has a target where there is no foreground; 0 where there is no target.
    """
    looked = target.sum(1) > 0
    band = looked & ((target.argmax(1) > 0) | (teacher.argmax(1) > 0))
    band = band.where(band.flatten(1).any(1).view(-1, *(1,) * (band.ndim - 1)), looked)
    return (values * band).flatten(1).sum(1) / band.flatten(1).sum(1).clamp(min=1)


def _widen(mask: Tensor, by_px: int) -> Tensor:
    if by_px <= 0:
        return mask
    pool = functional.max_pool2d if mask.ndim == 3 else functional.max_pool3d
    return pool(mask.unsqueeze(1).float(), 2 * by_px + 1, stride=1, padding=by_px).squeeze(1) > 0
