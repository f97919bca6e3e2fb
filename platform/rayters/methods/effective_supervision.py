"""Effective supervision: two networks doubt labels for each other; a suspect picture is not dropped, it teaches where it is credible.

Source: Shi and Wu, Distilling effective supervision for robust medical image segmentation with noisy labels, MICCAI 2021 (arXiv
2106.11099). **Reconstruction**: its abstract is certain (pixel-wise noise estimation; pixel-wise learning from original and pseudo
labels; image-level learning as a complement), the choices below are ours, each a field.

For each network, by what its peer believes:

pixel:  u = entropy of the peer's posterior, in [0, 1], no gradient
        loss = v CE(p, label) + w CE(p, pseudo label), over the sum of both weights; v and w by ``pixel_rule``
image:  the ``noisy_share`` of the patches of a batch with the highest score teach only where label and peer agree, which is most
        of a wrongly drawn picture

All networks are unsure along *every* boundary, of right labels too. There the pixel level keeps the label: ``boundary_px`` on
either side of it. The defaults are what held on real drawings (docs/experiments.md): the image level alone, without pseudo labels.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayters.methods.co_teaching import PeersNet
from rayters.methods.method import Eye, Loss, Outputs, Prediction, choice, tunable
from rayters.methods.robust_losses import ce, per_patch, soft_dice
from rayters.methods.targets import fused_target, one_hot_top
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class EffectiveSupervision:
    """Pixel-wise and image-wise robust learning of two networks, each of which doubts the labels for the other.

    warm_up: share of the training that is plain supervision, before any estimate is believed.
    full: share of the training from which on all of ``noisy_share`` is doubted.
    pixel_rule: "correct" believes the label where the peer agrees, the peer where it disagrees and is sure (u < ``sure``), and
                the label with weight 1 - u where it disagrees but is unsure. "blend" has v = 1 - u, w = u: a network that is unsure
                everywhere then teaches itself. "none" believes labels.
    image_rule: how patches are ranked: "loss" of the peer against the labels, a mean over all pixels, as what a wrong picture spoils
                is so many pixels; "band", the same over the labelled or predicted foreground, which finds small wrong pictures too;
                "uncertainty" mean u of the same band; "none".
    noisy_share: of patches, estimated; of the patches that a worker sees in one step, rounded.
    reuse: what a suspect patch still teaches: "agreement", where label and peer are of one mind; "pseudo", what the peer believes,
           which confirms its errors too; "none".
    """

    fusion: Literal["vote", "mean"] = choice("vote", "vote", "mean")
    warm_up: float = tunable(0.05, low=0.0, high=0.5)
    full: float = tunable(0.3, low=0.1, high=0.8)
    pixel_rule: Literal["correct", "blend", "none"] = choice("none", "correct", "blend", "none")
    sure: float = tunable(0.3, low=0.05, high=0.8)
    boundary_px: int = 1
    image_rule: Literal["loss", "band", "uncertainty", "none"] = choice("loss", "loss", "band", "uncertainty", "none")
    noisy_share: float = tunable(0.3, low=0.0, high=0.8)
    reuse: Literal["agreement", "pseudo", "none"] = choice("agreement", "agreement", "pseudo", "none")
    reuse_weight: float = tunable(1.0, low=0.1, high=2.0)
    dice: float = tunable(0.0, low=0.0, high=1.0)  # weight of a soft Dice loss beside the cross-entropy

    @property
    def needs_identity(self) -> bool:
        """A fusion is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Two eyes, initialised differently."""
        del task
        return PeersNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """The mean of the two networks' losses: cross-entropy in nats plus ``dice`` times soft Dice."""
        both = outputs["logits"], outputs["peer_logits"]
        target = fused_target(labels, both[0].shape[1], self.fusion)
        beliefs = [logits.detach().softmax(1) for logits in both]
        suspects = [self._suspects(target, peer, progress) for peer in reversed(beliefs)]
        losses = [
            self._taught(logits.log_softmax(1), target, peer, noisy, progress)
            for logits, peer, noisy in zip(both, reversed(beliefs), suspects, strict=True)
        ]
        loss = (losses[0] + losses[1]) / 2
        parts = {"supervised": loss.detach().mean(), "noisy_patches": torch.stack(suspects).float().mean()}
        return Loss(per_patch=loss, parts=parts)

    def _taught(self, log_p: Tensor, target: Tensor, peer: Tensor, noisy: Tensor, progress: float) -> Tensor:
        """The loss of one network, whose peer doubts labels for it: (B,)."""
        if progress < self.warm_up:
            return self._supervised(log_p, target)
        if self.pixel_rule == "none":
            loss = self._supervised(log_p, target)
        else:
            loss = self._pixelwise(log_p, target, one_hot_top(peer), uncertainty(peer))
        if self.reuse == "none":
            return loss * ~noisy
        agreed = (target.argmax(1) == peer.argmax(1)).unsqueeze(1)
        kept = target * agreed if self.reuse == "agreement" else one_hot_top(peer)
        return loss.where(~noisy, self.reuse_weight * self._supervised(log_p, kept))

    def _supervised(self, log_p: Tensor, target: Tensor) -> Tensor:
        loss = per_patch(ce(log_p, target), target)
        return loss + self.dice * soft_dice(log_p, target) if self.dice else loss

    def _pixelwise(self, log_p: Tensor, target: Tensor, pseudo: Tensor, unsure: Tensor) -> Tensor:
        """The pixel loss from original labels and pseudo labels: (B,)."""
        label, own = pixel_weights(target, pseudo, unsure, rule=self.pixel_rule, sure=self.sure)
        kept = near_boundary(target, self.boundary_px)
        looked = target.sum(1) > 0
        label, own = label.where(~kept, torch.ones_like(label)) * looked, own * ~kept * looked
        weight = (label + own).flatten(1).sum(1).clamp_min(1)
        cost = (label * ce(log_p, target) + own * ce(log_p, pseudo)).flatten(1).sum(1) / weight
        believed = target.lerp(pseudo, (own / (label + own).clamp_min(1e-6)).unsqueeze(1))
        return cost + self.dice * soft_dice(log_p, believed) if self.dice else cost

    def _suspects(self, target: Tensor, peer: Tensor, progress: float) -> Tensor:
        """Which patches of the batch the peer finds the most suspect: (B,) bool."""
        ramp = min(1.0, max(progress - self.warm_up, 0.0) / max(self.full - self.warm_up, 1e-6))
        suspect = torch.zeros(len(target), dtype=torch.bool, device=target.device)
        count = round(self.noisy_share * ramp * len(target)) if self.image_rule != "none" else 0
        if count == 0:
            return suspect
        disagreement = ce(peer.clamp_min(1e-6).log(), target)
        if self.image_rule == "loss":
            score = per_patch(disagreement, target)
        else:
            score = band_mean(disagreement if self.image_rule == "band" else uncertainty(peer), target, peer)
        suspect[score.topk(count).indices] = True
        return suspect

    def predict(self, outputs: Outputs) -> Prediction:
        """The mean of the two posteriors."""
        return Prediction(posterior=(outputs["logits"].softmax(1) + outputs["peer_logits"].softmax(1)) / 2)

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""


def uncertainty(posterior: Tensor) -> Tensor:
    """Entropy / log K: (B, K, *S) -> (B, *S) in [0, 1], without gradient: a network must not become unsure to escape its loss."""
    p = posterior.detach()
    return -torch.xlogy(p, p).sum(1) / math.log(p.shape[1])


def pixel_weights(target: Tensor, pseudo: Tensor, unsure: Tensor, *, rule: str, sure: float) -> tuple[Tensor, Tensor]:
    """How much a pixel believes its label, and how much the pseudo label: two (B, *S) in [0, 1]."""
    one = torch.ones_like(unsure)
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
    """Mean over the labelled or predicted foreground of a patch, (B, *S) -> (B,): over all pixels those of a small one would vanish.

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
