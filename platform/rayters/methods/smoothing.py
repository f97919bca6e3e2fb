"""Softening a target: Gaussian blur of probabilities, over the pixels that have any, and an intensity prior.

Shapes: B batch, C channels, K classes, S the spatial axes. A target is (B, K, *S), sums to 1 over K, or to 0 where nobody looked.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def blur(target: Tensor, sigma_px: float) -> Tensor:
    """The target blurred along all spatial axes, renormalised; where nobody looked stays zero and lends nothing to its neighbours.

    sigma_px: standard deviation, in pixels of the target; 0 leaves it sharp.
    """
    if sigma_px == 0:
        return target
    looked = (target.sum(1, keepdim=True) > 0).to(target.dtype)
    blurred = _gaussian(target, sigma_px)
    return blurred / blurred.sum(1, keepdim=True).clamp_min(1e-8) * looked


def intensity_prior(image: Tensor, target: Tensor) -> Tensor:
    """P(class | intensity) from one Gaussian per class and channel, fitted to this patch with the target as weights: (B, K, *S).

    image: (B, C, *S). Classes count alike, whatever their size; a class that is absent from the patch gets no probability, and with
    only one class present the prior is the target itself: intensity then tells nothing.
    """
    pixels, weight = image.flatten(2), target.flatten(2)  # (B, C, S), (B, K, S)
    mass = weight.sum(2)  # (B, K)
    mean = torch.einsum("bks,bcs->bkc", weight, pixels) / mass.clamp_min(1e-6).unsqueeze(2)
    square = torch.einsum("bks,bcs->bkc", weight, pixels.square()) / mass.clamp_min(1e-6).unsqueeze(2)
    variance = (square - mean.square()).clamp_min(1e-3 * pixels.var(2, keepdim=True).transpose(1, 2) + 1e-6)
    distance = (pixels.unsqueeze(1) - mean.unsqueeze(3)).square() / variance.unsqueeze(3)
    log_density = -0.5 * (distance + variance.log().unsqueeze(3)).sum(2)  # (B, K, S)
    present = mass > 1
    log_density = log_density.masked_fill(~present.unsqueeze(2), -1e9)
    prior = log_density.softmax(1).reshape(target.shape)
    several = (present.sum(1) > 1).view(-1, *(1,) * (target.ndim - 1))
    return prior.where(several, target)


def geometric_mix(target: Tensor, prior: Tensor, trust: float) -> Tensor:
    """target^trust x prior^(1 - trust), renormalised: (B, K, *S); 1 believes the annotators alone. Zero where nobody looked.

    Where the prior is all zero there is none, and the target stays as it was. Probabilities below 1e-4 count as 1e-4, so that neither
    side can forbid what the other is sure of.
    """
    both = (target.sum(1, keepdim=True) > 0) & (prior.sum(1, keepdim=True) > 0)
    log_mix = trust * target.clamp_min(1e-4).log() + (1 - trust) * prior.clamp_min(1e-4).log()
    return log_mix.softmax(1).where(both, target)


def _gaussian(maps: Tensor, sigma_px: float) -> Tensor:
    """Separable, cut off at three sigma, zero outside."""
    radius = max(1, math.ceil(3 * sigma_px))
    taps = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    kernel = (-0.5 * (taps / sigma_px).square()).exp()
    kernel = kernel / kernel.sum()
    for axis in (axis for axis in range(2, maps.ndim) if maps.shape[axis] > 1):  # one pixel has no neighbours
        rows = maps.movedim(axis, -1)
        flat = functional.conv1d(rows.reshape(-1, 1, rows.shape[-1]), kernel.view(1, 1, -1), padding=radius)
        maps = flat.reshape(rows.shape).movedim(-1, axis)
    return maps
