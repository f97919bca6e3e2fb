"""The backbone: where its pixels end up, which sizes it takes, and how a volume of one slice becomes a picture."""

import doctest

import pytest
import torch
from torch import Tensor, nn

from rayters.networks import backbone
from rayters.networks.backbone import UNet, kernel_sizes, pooling_strides


def unet(patch_px: tuple[int, ...], *, levels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return UNet(width=4, levels=levels).build(1, patch_px).eval()


def blob(patch_px: tuple[int, ...]) -> Tensor:
    """Noise in the middle of nothing: rolled, it is the same picture elsewhere, and every mean over the picture stays."""
    middle = tuple(slice(side // 2 - 4, side // 2 + 4) if side > 16 else slice(None) for side in patch_px)
    picture = torch.zeros(1, 1, *patch_px)
    picture[(0, 0, *middle)] = torch.randn(picture[(0, 0, *middle)].shape, generator=torch.Generator().manual_seed(1))
    return picture


def stages(net: nn.Module, picture: Tensor) -> list[Tensor]:
    """What each stage of the decoder puts out, from the coarsest up, and the features last."""
    seen: list[Tensor] = []
    hooks = [
        stage.register_forward_hook(lambda _module, _inputs, output: seen.append(output)) for stage in net.net.upsamples
    ]
    with torch.no_grad():
        features = net(picture)
    for hook in hooks:
        hook.remove()
    return [*seen, features]


def inner(maps: Tensor) -> Tensor:
    """The middle of the plane, a quarter of its side off every border: there, no padding is seen."""
    cut = slice(maps.shape[-1] // 4, -maps.shape[-1] // 4)
    return maps[..., cut, cut]


@pytest.mark.parametrize(
    ("patch_px", "levels"), [((128, 128), 3), ((256, 256), 4), ((5, 128, 128), 3)], ids=["2-D", "2-D, 4 levels", "3-D"]
)
def test_what_is_moved_by_the_total_stride_is_found_as_far_away_by_every_stage(patch_px, levels):
    net, picture = unet(patch_px, levels=levels), blob(patch_px)
    total = 2 ** (levels - 1)
    down, right = 2 * total, -total
    before = stages(net, picture)
    after = stages(net, picture.roll((down, right), (-2, -1)))
    strides = [2**level for level in reversed(range(levels - 1))] + [1]
    assert len(before) == len(strides)
    for there, here, stride in zip(after, before, strides, strict=True):
        moved = here.roll((down // stride, right // stride), (-2, -1))
        assert inner(here).std() > 0.01
        assert torch.allclose(inner(there), inner(moved), atol=1e-4)
        assert not torch.allclose(inner(there), inner(here), atol=1e-2)


def test_features_lie_where_the_picture_is_and_not_beside_it():
    """Moved by half of the stride of its coarsest level, most of the answer still moves along, to the pixel."""
    net, picture = unet((128, 128)), blob((128, 128))
    with torch.no_grad():
        here, there = net(picture), net(picture.roll(2, -1))
    errors = {by: (inner(there) - inner(here.roll(by, -1))).square().mean().item() for by in range(-2, 7)}
    assert min(errors, key=errors.__getitem__) == 2


SIZES = [(7, 7), (5, 9), (12, 20), (10, 4), (3, 16, 16), (5, 32, 32), (1, 16, 16), (1, 1, 8), (2, 2)]


@pytest.mark.parametrize("patch_px", SIZES, ids=str)
def test_any_size_odd_ones_too_comes_out_as_it_went_in(patch_px):
    # two pictures: instance norm refuses, in training, a level whose picture is a single pixel
    assert unet(patch_px)(torch.randn(2, 1, *patch_px)).shape == (2, 4, *patch_px)


@pytest.mark.parametrize("patch_px", SIZES, ids=str)
def test_nothing_is_ever_cropped_to_fit(patch_px):
    """A negative padding would crop: the released code of Zhang et al. aligned its decoder so, and misaligned it."""
    convolutions = [layer for layer in unet(patch_px).modules() if isinstance(layer, nn.modules.conv._ConvNd)]
    assert len(convolutions) > 8
    assert min(min(layer.padding) for layer in convolutions) >= 0
    assert min(min(layer.output_padding) for layer in convolutions) >= 0


def test_along_an_axis_of_one_pixel_the_outer_taps_of_a_kernel_meet_padding_only(monkeypatch):
    patch_px, views = (1, 32, 32), torch.randn(2, 1, 1, 32, 32)
    flat = unet(patch_px)
    monkeypatch.setattr(backbone, "kernel_sizes", lambda _, strides: [3] * len(strides))
    full = unet(patch_px)
    for thin, thick in zip(flat.parameters(), full.parameters(), strict=True):
        if thin.shape == thick.shape:
            thick.data.copy_(thin)
        else:
            thick.data[:, :, 1:2].copy_(thin)  # the middle tap; the outer ones keep whatever they are
    with torch.no_grad():
        assert torch.allclose(flat(views), full(views), atol=1e-5)
    assert sum(p.numel() for p in flat.parameters()) < 0.4 * sum(p.numel() for p in full.parameters())


def test_kernels_are_three_wherever_there_are_neighbours():
    assert kernel_sizes((64, 64), [(1, 1), (2, 2)]) == [(3, 3), (3, 3)]
    assert kernel_sizes((1, 1, 8), [(1, 1, 1), (1, 1, 2)]) == [(1, 1, 3), (1, 1, 3)]


def test_an_axis_is_halved_while_it_is_even_and_long_enough():
    assert pooling_strides((12, 20), 4) == [(1, 1), (2, 2), (1, 2), (1, 1)]
    assert pooling_strides((6, 8), 3) == [(1, 1), (1, 2), (1, 1)]


def test_the_examples_in_the_backbones_docstrings_are_true():
    found = doctest.testmod(backbone)
    assert found.attempted >= 3
    assert found.failed == 0


@pytest.mark.parametrize("wrong", [{"width": 0}, {"levels": 2}])
def test_a_network_without_width_or_levels_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UNet(**wrong)
