"""A Gaussian latent that colours the features of a network: how probabilistic and personal methods say 'which of the answers'.

Shapes: B batch, C channels, F features, K classes, Z latent, S the spatial axes.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rayters.networks.head import pointwise
from rayters.networks.task import Task


class LatentHead(nn.Module):
    """Features (B, F, *S) and a latent (B, Z), the same at every pixel -> logits (B, K, *S), by three pointwise layers."""

    def __init__(self, *, axes: int, features: int, latent: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            pointwise(axes, features + latent, features),
            nn.LeakyReLU(0.01),
            pointwise(axes, features, features),
            nn.LeakyReLU(0.01),
            pointwise(axes, features, classes),
        )

    def forward(self, features: Tensor, latent: Tensor) -> Tensor:
        """Logits."""
        everywhere = latent.view(*latent.shape, *(1,) * (features.ndim - 2)).expand(-1, -1, *features.shape[2:])
        logits: Tensor = self.layers(torch.cat([features, everywhere], dim=1))
        return logits


class GaussianEncoder(nn.Module):
    """A picture (B, C, *S) -> mean and log variance of a latent, two (B, Z): strided convolutions, then the mean over all pixels."""

    def __init__(self, *, axes: int, channels: int, width: int, latent: int) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
        widths = (channels, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [conv(inputs, outputs, kernel_size=3, stride=2, padding=1), nn.LeakyReLU(0.01)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 2 * latent)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance."""
        mean, log_variance = self.head(self.layers(picture).flatten(2).mean(2)).chunk(2, dim=1)
        return mean, log_variance.clamp(-8, 8)


def draw(mean: Tensor, log_variance: Tensor) -> Tensor:
    """One sample, differentiable in both."""
    return mean + torch.exp(log_variance / 2) * torch.randn_like(mean)


def kl_of_gaussians(mean: Tensor, log_variance: Tensor, mean_prior: Tensor, log_variance_prior: Tensor) -> Tensor:
    """KL divergence of the first diagonal Gaussian from the second, in nats: (..., Z) -> (...)."""
    ratio = (log_variance - log_variance_prior).exp()
    apart = (mean - mean_prior).square() / log_variance_prior.exp()
    return 0.5 * (ratio + apart - 1 - log_variance + log_variance_prior).sum(-1)


def features_of(eye: nn.Module, task: Task) -> int:
    """How many features an eye returns per pixel, from one look at nothing."""
    nothing = torch.zeros(1, len(task.view_scales), task.channels, *task.patch_px)
    with torch.no_grad():
        return int(eye(nothing)["features"].shape[1])
