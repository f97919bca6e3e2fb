"""Effective supervision: two networks doubt labels for each other; a suspect picture is not dropped, it teaches where it is credible.

Source: Shi and Wu, Distilling effective supervision for robust medical image segmentation with noisy labels, MICCAI 2021 (arXiv
2106.11099). **Reconstruction**: its abstract is certain (pixel-wise noise estimation; pixel-wise learning from original and pseudo
labels; image-level learning as a complement), the choices below are ours, each a field.

For each network, by what its peer believes:

pixel:  u = entropy of the peer's posterior, in [0, 1], no gradient
        loss = v CE(p, label) + w CE(p, pseudo label), over the sum of both weights; v and w by ``pixel_rule``
image:  the ``noisy_share`` of the patches of a batch with the highest score teach only where label and peer agree, which is most
        of a wrongly drawn picture

A peer doubts as far as it is credible itself: not at all while it draws nothing. Otherwise the patches with the most foreground would be
suspect, and background be all that is agreed upon in them; of vessels nobody drew any in the end.

Of fewer than four patches there is no share to take: round(.3 x 1) is none, round(.3 x 2) one of two. Such a batch is compared with
the scores of the last ``RECENT`` patches instead, which the net remembers; until it does, nobody is suspect.

All networks are unsure along *every* boundary, of right labels too. There the pixel level keeps the label, ``boundary_px`` on either
side of it, and the image level does not count how unsure they are. The defaults are what held on real drawings (docs/experiments.md):
the image level alone, without pseudo labels.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayters.gaze.gaze import PEER, beside
from rayters.methods.method import Eye, Loss, Outputs, Prediction, choice, tunable
from rayters.methods.robust_losses import ce, per_patch, soft_dice
from rayters.methods.sentinel import overlap
from rayters.methods.targets import fused_target, majority, one_hot_top
from rayters.networks.task import Task

ENOUGH = 4  # patches of a batch, from which on a share of them is a number
CREDIBLE = 0.5  # Dice with noisy drawings, above which a peer knows enough to doubt them
MEMORY = 0.95  # of how well each eye draws, per step
RECENT = 32  # scores that a net remembers of each eye, for batches of fewer
REMEMBERED = ("recent_scores", "credit")


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
                "uncertainty" mean u of the same band without the boundaries; "none".
    noisy_share: of patches, estimated; of the patches that a worker sees at once, rounded, or of the last ones where those are few.
    reuse: what a suspect patch still teaches: "agreement", where label and peer are of one mind; "pseudo", what the peer believes
           where anybody looked, which confirms its errors too; "none".
    reuse_balance: "peer" teaches the classes of what is agreed upon in the proportion that the peer expects, see ``balance``: for thin or
                   small structures, of which otherwise less and less is drawn. Large ones do better without.
    reuse_ramp: "late" multiplies ``reuse_weight`` by exp(-5 (1 - progress)^2), as little is credible early on.
    pseudo_temperature: pseudo labels are the peer's posterior to the power of 1 / temperature, normalised; 0: its most probable class.

    Raises:
        ValueError: for a negative temperature.
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
    reuse_balance: Literal["none", "peer"] = choice("none", "none", "peer")
    reuse_ramp: Literal["none", "late"] = "none"
    pseudo_temperature: float = 0.0
    dice: float = tunable(0.0, low=0.0, high=1.0)  # weight of a soft Dice loss beside the cross-entropy

    def __post_init__(self) -> None:
        if self.pseudo_temperature < 0:
            raise ValueError(f"pseudo_temperature={self.pseudo_temperature} must not be negative: 0 is the top class")

    @property
    def needs_identity(self) -> bool:
        """A fusion is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Two eyes, initialised differently, and their memory."""
        del task
        return DoubtingNet(self, eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """The mean of the two networks' losses: cross-entropy in nats plus ``dice`` times soft Dice."""
        both = outputs["logits"], outputs["peer_logits"]
        target = fused_target(labels, both[0].shape[1], self.fusion)
        beliefs = [logits.detach().softmax(1) for logits in both]
        memories = [
            {name: outputs[prefix + name] for name in REMEMBERED if prefix + name in outputs} for prefix in ("", PEER)
        ]
        suspects = [
            self._suspects(target, peer, progress, **memory)
            for peer, memory in zip(reversed(beliefs), reversed(memories), strict=True)
        ]
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
        pseudo = sharpened(peer, self.pseudo_temperature)
        if self.pixel_rule == "none":
            loss = self._supervised(log_p, target)
        else:
            loss = self._pixelwise(log_p, target, pseudo, uncertainty(peer))
        if self.reuse == "none":
            return loss * ~noisy
        looked = target.sum(1, keepdim=True) > 0
        if self.reuse == "pseudo":
            reused = self._supervised(log_p, pseudo * looked)
        else:
            agreed = target * (target.argmax(1) == peer.argmax(1)).unsqueeze(1)
            weight = balance(agreed, peer * looked) if self.reuse_balance == "peer" else 1.0
            reused = self._supervised(log_p, agreed, weight)
        return loss.where(~noisy, self._reuse_at(progress) * reused)

    def _reuse_at(self, progress: float) -> float:
        return self.reuse_weight * (math.exp(-5 * (1 - progress) ** 2) if self.reuse_ramp == "late" else 1.0)

    def _supervised(self, log_p: Tensor, target: Tensor, weight: Tensor | float = 1.0) -> Tensor:
        """weight: of the cross-entropy's classes, broadcast to (B, K, *S)."""
        loss = per_patch(ce(log_p, target * weight), target)
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

    def _suspects(
        self,
        target: Tensor,
        peer: Tensor,
        progress: float,
        recent_scores: Tensor | None = None,
        credit: Tensor | float = 1.0,
    ) -> Tensor:
        """Which patches of the batch the peer finds the most suspect: (B,) bool.

        recent_scores: (RECENT,) the peer's of the last patches, those below 0 not yet there; None where nothing is remembered.
        credit: () in [0, 1], how far the peer may doubt at all.
        """
        ramp = min(1.0, max(progress - self.warm_up, 0.0) / max(self.full - self.warm_up, 1e-6))
        share = self.noisy_share * ramp * float(credit) if self.image_rule != "none" else 0.0
        if recent_scores is not None and len(target) < ENOUGH:
            limit = recent_scores.quantile(1 - share)
            return (self.score(target, peer) > limit) & (recent_scores.min() >= 0) & (share > 0)
        suspect = torch.zeros(len(target), dtype=torch.bool, device=target.device)
        if count := round(share * len(target)):
            suspect[self.score(target, peer).topk(count).indices] = True
        return suspect

    def score(self, target: Tensor, peer: Tensor) -> Tensor:
        """How suspect each patch is by what the peer believes: (B,), not negative."""
        disagreement = ce(peer.clamp_min(1e-6).log(), target)
        if self.image_rule == "loss":
            return per_patch(disagreement, target)
        if self.image_rule == "band":
            return band_mean(disagreement, target, peer)
        return band_mean(uncertainty(peer), target, peer, without=near_boundary(target, self.boundary_px))

    def predict(self, outputs: Outputs) -> Prediction:
        """The mean of the two posteriors."""
        return Prediction(posterior=(outputs["logits"].softmax(1) + outputs["peer_logits"].softmax(1)) / 2)

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do: the net keeps its own memory."""


class DoubtingNet(nn.Module):
    """Two eyes: the first one's outputs and, after "peer_", the second's.

    In training it remembers of each eye, and returns as it was before this batch: its "credit" (), in [0, 1], how far it may doubt, fully
    once its foreground has a Dice of ``CREDIBLE`` with what was drawn lately, since an eye that draws nothing yet would suspect whoever
    drew the most; and with batches of fewer than ``ENOUGH`` patches "recent_scores" (RECENT,), what it gave the last patches.
    """

    recent: Tensor
    drawn: Tensor  # (2, 2) of each eye its overlap with the majority, forgetting by ``MEMORY``

    def __init__(self, method: EffectiveSupervision, eye: Eye) -> None:
        super().__init__()
        self.method = method
        self.eye, self.peer = eye(), eye()
        self.register_buffer("recent", torch.full((2, RECENT), -1.0))
        self.register_buffer("drawn", torch.zeros(2, 2))

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats; labels: (B, A, *S) or None."""
        eyes: list[Outputs] = [self.eye(views), self.peer(views)]
        if labels is not None and self.training and self.method.image_rule != "none":
            few = len(labels) < ENOUGH
            remembered = zip(self.recent.clone(), self._credit(), strict=True)
            known = [{"credit": credit} | ({"recent_scores": recent} if few else {}) for recent, credit in remembered]
            self._remember(eyes, labels)
            eyes = [each | memory for each, memory in zip(eyes, known, strict=True)]
        return beside(*eyes)

    def _credit(self) -> Tensor:
        """(2,) in [0, 1]."""
        same, sizes = self.drawn.unbind(1)
        return (same / sizes.clamp_min(1e-6) / CREDIBLE).clamp(max=1)

    @torch.no_grad()
    def _remember(self, eyes: list[Outputs], labels: Tensor) -> None:
        classes = eyes[0]["logits"].shape[1]
        label = majority(labels, classes)
        agreed = torch.stack([overlap(each["logits"].argmax(1), label) for each in eyes])
        self.drawn.mul_(MEMORY).add_(agreed)
        if len(labels) < ENOUGH:
            target = fused_target(labels, classes, self.method.fusion)
            scores = torch.stack([self.method.score(target, each["logits"].float().softmax(1)) for each in eyes])
            scores = scores[:, target.flatten(1).any(1)]  # what nobody looked at has a score of 0, which is no measure
            self.recent.copy_(torch.cat([self.recent, scores], dim=1)[:, -RECENT:])


def balance(agreed: Tensor, believed: Tensor) -> Tensor:
    """Weights in [0, 1], (B, K, 1, ...), by which the classes of what is agreed upon have the shares that the peer expects of them.

    agreed: (B, K, *S); believed: (B, K, *S) the peer's posterior where anybody looked. Label and peer agree on nearly all background and
    on half of a thin vessel: taught as it is, that would say that vessels are rarer than even the peer believes, and so on until nobody
    draws any. Of a class of which less than a pixel is expected nothing is asked; where another is not agreed upon at all, every weight
    is 0.
    """
    expected = believed.flatten(2).sum(2)
    share = (agreed.flatten(2).sum(2) / expected.clamp_min(1)).where(expected >= 1, torch.ones_like(expected))
    weight = share.amin(1, keepdim=True) / share.clamp_min(1e-6)
    return weight.view(*weight.shape, *(1,) * (believed.ndim - 2))


def sharpened(posterior: Tensor, temperature: float) -> Tensor:
    """p^(1 / temperature), normalised: (B, K, *S) -> (B, K, *S); the most probable class at 0, p itself at 1."""
    if temperature == 0:
        return one_hot_top(posterior)
    return (posterior.clamp_min(1e-12).log() / temperature).softmax(1)


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


def band_mean(values: Tensor, target: Tensor, teacher: Tensor, *, without: Tensor | None = None) -> Tensor:
    """Mean over the labelled or predicted foreground of a patch, (B, *S) -> (B,): over all pixels those of a small one would vanish.

    Over everything that has a target where there is no foreground; 0 where there is no target. without: (B, *S) bool, left out.
    """
    looked = target.sum(1) > 0
    looked = looked if without is None else looked & ~without
    band = looked & ((target.argmax(1) > 0) | (teacher.argmax(1) > 0))
    band = band.where(band.flatten(1).any(1).view(-1, *(1,) * (band.ndim - 1)), looked)
    return (values * band).flatten(1).sum(1) / band.flatten(1).sum(1).clamp(min=1)


def _widen(mask: Tensor, by_px: int) -> Tensor:
    if by_px <= 0:
        return mask
    pool = functional.max_pool2d if mask.ndim == 3 else functional.max_pool3d
    return pool(mask.unsqueeze(1).float(), 2 * by_px + 1, stride=1, padding=by_px).squeeze(1) > 0
