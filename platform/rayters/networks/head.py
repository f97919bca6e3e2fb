"""A pointwise convolution in two or three dimensions: features in, one number per class and pixel out."""

from torch import nn


def pointwise(axes: int, features: int, outputs: int) -> nn.Module:
    """A module (B, features, *S) -> (B, outputs, *S) that looks at one pixel at a time; ``axes`` is 2 or 3."""
    return (nn.Conv2d if axes == 2 else nn.Conv3d)(features, outputs, kernel_size=1)
