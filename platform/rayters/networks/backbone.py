"""The backbone: MONAI's DynUNet (the network of nnU-Net), for pictures and volumes by one argument.

Shapes: B batch, C channels, F features, S the spatial axes (two or three trailing dimensions).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

MIN_SIDE_PX = 4  # an axis that would become shorter than this is not halved again


@dataclass(frozen=True, kw_only=True)
class UNet:
    """A residual-free U-Net with instance norm: ``levels`` resolutions, ``width`` features at full resolution, doubled per level.

    Axes are halved only while they stay even and at least ``MIN_SIDE_PX`` long, so any patch size is served and a thin volume is
    not squeezed along z.
    """

    width: int = 16
    levels: int = 3

    def __post_init__(self) -> None:
        if self.width < 1 or self.levels < 3:
            raise ValueError(f"a U-Net needs width >= 1 and levels >= 3, not width={self.width}, levels={self.levels}")

    def build(self, channels: int, patch_px: tuple[int, ...]) -> nn.Module:
        """A module (B, channels, *S) -> (B, width, *S) for inputs of ``patch_px``, or any size that its strides divide."""
        from monai.networks.nets.dynunet import DynUNet  # takes seconds to import; only who builds a net waits for it

        strides = pooling_strides(patch_px, self.levels)
        net: Any = DynUNet(
            spatial_dims=len(patch_px),
            in_channels=channels,
            out_channels=self.width,
            kernel_size=kernel_sizes(patch_px, strides),
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=[self.width * 2**level for level in range(self.levels)],
            norm_name=("INSTANCE", {"affine": True}),
            act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
        )
        return Features(net)


class Features(nn.Module):
    """A backbone followed by the activation that makes features of its last, linear, layer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.activation = nn.LeakyReLU(0.01)

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, *S) floats -> (B, F, *S)."""
        features: Tensor = self.activation(self.net(image))
        return features


def kernel_sizes(patch_px: tuple[int, ...], strides: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The kernel of each level per axis: 3, and 1 along an axis of one pixel, where the other taps would only ever meet padding.

    >>> kernel_sizes((1, 64, 64), [(1, 1, 1), (1, 2, 2), (1, 2, 2)])
    [(1, 3, 3), (1, 3, 3), (1, 3, 3)]
    """
    sizes, size = [], patch_px
    for stride in strides:
        size = tuple(side // step for side, step in zip(size, stride, strict=True))
        sizes.append(tuple(3 if side > 1 else 1 for side in size))
    return sizes


def pooling_strides(patch_px: tuple[int, ...], levels: int) -> list[tuple[int, ...]]:
    """The stride of each level per axis; the first is one.

    >>> pooling_strides((64, 64), 3)
    [(1, 1), (2, 2), (2, 2)]
    >>> pooling_strides((5, 64, 64), 3)
    [(1, 1, 1), (1, 2, 2), (1, 2, 2)]
    """
    strides, size = [(1,) * len(patch_px)], patch_px
    for _ in range(levels - 1):
        stride = tuple(2 if side % 2 == 0 and side // 2 >= MIN_SIDE_PX else 1 for side in size)
        size = tuple(side // step for side, step in zip(size, stride, strict=True))
        strides.append(stride)
    return strides
