"""Losses that forgive wrong labels, per pixel, as pure functions.

Shapes: B batch, K classes, S the spatial axes. log_p (B, K, *S) = log_softmax of the logits; target q (B, K, *S) probabilities, one-hot
or soft, all zero where there is no target. Every loss returns (B, *S), 0 where there is no target; ``per_patch`` takes the mean.

An *active* loss raises p of the label (NCE, NFL), a *passive* one lowers p of the others (MAE, RCE); their weighted sum is noise
tolerant and still fits. Soft targets come in two variants, equal on one-hot targets:

  "confidence_weighted"  the published formula with q put in. It is linear in q: its minimum lies at p = 1[q > 1/2], a pixel with
                         q = 1/2 has no gradient at all, and the network becomes over-confident. A weighting of hard labels.
  "proper"               minimal exactly at p = q: the entropy of the target is taken off the numerator of NCE and NFL, and MAE and
                         RCE become the true distance |p - q|. For calibrated probabilities.

Sources: GCE Zhang and Sabuncu, NeurIPS 2018; SCE Wang et al., ICCV 2019; NCE, NFL and active-passive sums Ma et al., ICML 2020; NR-Dice
Wang et al., IEEE TMI 39(8), 2020; T-Loss Gonzalez-Jimenez et al., MICCAI 2023. Ma et al.'s NMAE and NRCE are not here: over all labels
MAE sums to K - 1 and RCE to -LOG_ZERO (K - 1), whatever p is, so they are MAE and RCE under another weight.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Variant = Literal["confidence_weighted", "proper"]

LOG_ZERO = math.log(1e-4)  # A, what log 0 counts as in RCE: that of the released code; the paper's text says -4


def per_patch(per_pixel: Tensor, target: Tensor) -> Tensor:
    """The mean over the pixels that have a target: (B, *S) -> (B,); 0 for a patch without any."""
    has_target = target.sum(1) > 0
    spatial = tuple(range(1, per_pixel.ndim))
    return (per_pixel * has_target).sum(spatial) / has_target.sum(spatial).clamp(min=1)


def ce(log_p: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, in nats; proper."""
    return -(target * log_p).sum(1)


def gce(log_p: Tensor, target: Tensor, *, power: float = 0.7) -> Tensor:
    """Generalised cross-entropy (1 - p^power) / power, in [0, 1/power]: CE as power -> 0, 1 - p at 1."""
    return (target * -torch.expm1(power * log_p)).sum(1) / power


def mae(log_p: Tensor, target: Tensor, *, variant: Variant = "confidence_weighted") -> Tensor:
    """1 - p of the label, in [0, 1]; proper: half of sum |p - q|, which is the same for a one-hot target."""
    if variant == "proper":
        return (log_p.exp() - target).abs().sum(1) / 2 * (target.sum(1) > 0)
    return (target * -torch.expm1(log_p)).sum(1)


def rce(log_p: Tensor, target: Tensor, *, variant: Variant = "confidence_weighted") -> Tensor:
    """Reverse cross-entropy -sum p log q with log 0 = ``LOG_ZERO``; proper: -LOG_ZERO times the proper MAE, the same for one-hot."""
    if variant == "proper":
        return -LOG_ZERO * mae(log_p, target, variant=variant)
    log_q = target.log().clamp(min=LOG_ZERO)
    return -(log_p.exp() * log_q).sum(1) * (target.sum(1) > 0)


def sce(
    log_p: Tensor, target: Tensor, *, alpha: float = 0.1, beta: float = 1.0, variant: Variant = "confidence_weighted"
) -> Tensor:
    """Symmetric cross-entropy alpha CE + beta RCE."""
    return alpha * ce(log_p, target) + beta * rce(log_p, target, variant=variant)


def nce(log_p: Tensor, target: Tensor, *, variant: Variant = "confidence_weighted") -> Tensor:
    """CE / sum over all labels of CE, in [0, 1]. The denominator is at least K log K: never a division by 0."""
    return _excess(log_p, target, variant) / -log_p.sum(1)


def nfl(log_p: Tensor, target: Tensor, *, gamma: float = 0.5, variant: Variant = "confidence_weighted") -> Tensor:
    """Focal loss / sum over all labels of focal loss, in [0, 1]; the factors (1 - p)^gamma carry no gradient, as in the released code."""
    factor = (-torch.expm1(log_p)).clamp(min=0).pow(gamma).detach()
    everything = -(factor * log_p).sum(1)
    if variant == "proper":
        return (target * factor).sum(1) * _excess(log_p, target, variant) / everything
    return -(target * factor * log_p).sum(1) / everything


def nr_dice(log_p: Tensor, target: Tensor, *, gamma: float = 1.5, smooth: float = 1e-5) -> Tensor:
    """Noise-robust Dice of each patch, (B,), mean over the foreground classes: sum |p - q|^gamma / (sum p^2 + sum q^2).

    gamma 2 is the usual Dice loss, 1 is MAE-like.
    """
    has_target = target.sum(1, keepdim=True) > 0
    spatial = tuple(range(2, log_p.ndim))
    p, q = (log_p.exp() * has_target)[:, 1:], target[:, 1:]
    difference = (p - q).abs().clamp(min=1e-12).pow(gamma) * has_target  # the root of 0 has no gradient
    return ((difference.sum(spatial) + smooth) / (p.square().sum(spatial) + q.square().sum(spatial) + smooth)).mean(1)


def soft_dice(log_p: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """1 - Dice of each patch, (B,), mean over the foreground classes, for probabilities."""
    has_target = target.sum(1, keepdim=True) > 0
    spatial = tuple(range(2, log_p.ndim))
    p, q = (log_p.exp() * has_target)[:, 1:], target[:, 1:]
    return 1 - ((2 * (p * q).sum(spatial) + smooth) / ((p + q).sum(spatial) + smooth)).mean(1)


def t_loss(log_p: Tensor, target: Tensor, log_nu: Tensor) -> Tensor:
    """Student-t negative log-likelihood of the whole patch's error, per pixel, in nats: (B,).

    log_nu: scalar, learnt: the logarithm of the degrees of freedom; few of them forgive large errors. The error of a patch is one
    vector of D = foreground classes x pixels entries, with unit scale; the paper's loss is D times this one.
    """
    has_target = target.sum(1, keepdim=True) > 0
    error = ((log_p.exp() - target) * has_target)[:, 1:].flatten(1)
    size = (has_target.flatten(1).sum(1) * (log_p.shape[1] - 1)).clamp(min=1).to(error.dtype)
    nu = log_nu.exp() + 1e-3
    tail = (nu + size) / 2 * torch.log1p(error.square().sum(1) / nu)
    normaliser = torch.lgamma(nu / 2) - torch.lgamma((nu + size) / 2) + size / 2 * (math.pi * nu).log()
    return (tail + normaliser) / size


def _excess(log_p: Tensor, target: Tensor, variant: Variant) -> Tensor:
    """CE, less the entropy of the target for the proper variant: then KL(q || p), which is 0 exactly at p = q."""
    entropy = -torch.xlogy(target, target).sum(1) if variant == "proper" else 0.0
    return ce(log_p, target) - entropy
