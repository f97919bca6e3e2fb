"""Augmentation on the device: every patch gets its own flips, rotation, scale, bending and colours, decided by its identity alone.

All views and all annotators' labels of a patch move together, about the centre that they share. A wider view sees more of the same
motion: what moves the target by 4 pixels moves a view of twice the field of view by 2 of its own pixels, at the same place.

    noise of a patch = Philox(seed, identity)      so it does not matter in which batch, on which worker, or after how many
                                                   restarts a patch comes; numpy draws it, for torch's devices do not agree

Written on torch's affine_grid and grid_sample: MONAI's transforms draw per sample and per array, and know neither identities nor
views of several scales. Volumes turn in the (y, x) plane only, for their z axis is coarser and the body lies on a table.

Shapes: B batch, V views, C channels, A annotators, S the spatial axes (y, x) or (z, y, x).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from casebook import IGNORE
from rayters.training.augmentation import Augmentation
from rayters.training.stain import jitter_stain

CONTROL = 5  # control points of the bending, per axis, over the widest view


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Uniform noise in [-1, 1] of each patch: flip (B, axes), turn (B,), zoom (B,), colour (B, 4, C), bend (B, axes, *control) normal."""

    flip: Tensor
    turn: Tensor
    zoom: Tensor
    colour: Tensor
    bend: Tensor


def augment(
    views: Tensor,
    labels: Tensor,
    patch: Tensor,
    *,
    augmentation: Augmentation,
    seed: int,
    scales: tuple[float, ...],
    mean: Tensor,
    std: Tensor,
) -> tuple[Tensor, Tensor]:
    """Moved, recoloured and normalised patches.

    views: (B, V, C, *S) as stored. labels: (B, A, *S) uint8. patch: (B,) int64 identities. scales: field of view of each view over
    the target's. mean, std: (C,) in stored units.
    Returns views (B, V, C, *S) float32 in standard deviations, labels (B, A, *S) uint8; IGNORE where a label came from outside.
    """
    axes, device = labels.ndim - 2, views.device
    noise = draw_noise(patch, seed, channels=views.shape[2], axes=axes, device=device)
    pixels = views.float()
    if augmentation.stain:
        pixels = jitter_stain(pixels, noise.colour[:, :2] * augmentation.stain)
    per_channel = (1, 1, -1, *(1,) * axes)
    pixels = (pixels - mean.view(per_channel)) / std.view(per_channel)
    gain, shift = (noise.colour[:, i].reshape(len(patch), 1, -1, *(1,) * axes) for i in (2, 3))
    pixels = pixels * (1 + augmentation.gain * gain) + augmentation.shift * shift
    return move(pixels, labels, noise, augmentation, scales)


def draw_noise(patch: Tensor, seed: int, *, channels: int, axes: int, device: torch.device) -> Noise:
    """The noise of each patch, from its identity and the seed alone."""
    sizes = (axes, 1, 1, 4 * channels)
    uniform = np.empty((len(patch), sum(sizes)), dtype=np.float32)
    bend = np.empty((len(patch), axes, *(CONTROL,) * axes), dtype=np.float32)
    for place, identity in enumerate(patch.tolist()):
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, identity], dtype=np.uint64)))
        uniform[place] = rng.uniform(-1, 1, uniform.shape[1])
        bend[place] = rng.standard_normal(bend.shape[1:], dtype=np.float32)
    flip, turn, zoom, colour = torch.from_numpy(uniform).to(device, non_blocking=True).split(sizes, dim=1)  # type: ignore[no-untyped-call]
    return Noise(
        flip=flip,
        turn=turn[:, 0],
        zoom=zoom[:, 0],
        colour=colour.reshape(-1, 4, channels),
        bend=torch.from_numpy(bend).to(device, non_blocking=True),
    )


def move(
    pixels: Tensor, labels: Tensor, noise: Noise, augmentation: Augmentation, scales: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """Sample views (linear, mirrored beyond their border) and labels (nearest, IGNORE beyond) where the motion says."""
    affine = affine_of(noise, augmentation, labels.shape[2:])
    moved = torch.empty_like(pixels)
    for view, scale in enumerate(scales):
        grid = grid_of(affine, noise.bend * augmentation.elastic, scale, max(scales), pixels.shape[3:])
        moved[:, view] = functional.grid_sample(
            pixels[:, view], grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )
    grid = grid_of(affine, noise.bend * augmentation.elastic, 1.0, max(scales), labels.shape[2:])
    # 0 is what grid_sample gives beyond the border, so labels are sampled one higher: 0 there is IGNORE here
    sampled = functional.grid_sample(
        (labels.float() + 1) % 256, grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return moved, torch.where(sampled == 0, float(IGNORE), sampled - 1).to(torch.uint8)


def affine_of(noise: Noise, augmentation: Augmentation, size: tuple[int, ...]) -> Tensor:
    """(B, axes, axes + 1) from a place in the result to the place it is taken from, torch's way: (x, y[, z]) in [-1, 1]."""
    axes = len(size)
    angle = noise.turn * augmentation.rotation_deg * (torch.pi / 180)
    zoom = (1 + augmentation.scale) ** noise.zoom
    turn = torch.eye(axes, device=angle.device).repeat(len(angle), 1, 1)
    aspect = size[-2] / size[-1]  # of a patch that is no square: turn pixels, not fractions of the sides
    turn[:, 0, 0] = turn[:, 1, 1] = torch.cos(angle)
    turn[:, 0, 1], turn[:, 1, 0] = -torch.sin(angle) * aspect, torch.sin(angle) / aspect
    sign = torch.where((noise.flip < 0) & torch.tensor(augmentation.flips), -1.0, 1.0).flip(1)  # axes are (.., y, x)
    affine = turn * sign[:, None, :] / zoom[:, None, None]
    return torch.cat([affine, torch.zeros_like(affine[..., :1])], dim=-1)


def grid_of(affine: Tensor, bend: Tensor, scale: float, widest: float, size: tuple[int, ...]) -> Tensor:
    """(B, *size, axes) where each pixel of a view is taken from, in [-1, 1] of that view; ``bend`` (B, axes, *control)."""
    shape = [len(affine), 1, *size]
    grid = functional.affine_grid(affine, shape, align_corners=False)
    if not bool(bend.any()):
        return grid
    straight = torch.zeros_like(affine)
    straight[:, :, :-1] = torch.eye(affine.shape[1], device=affine.device)
    places = functional.affine_grid(straight, shape, align_corners=False) * (scale / widest)
    smooth = functional.interpolate(bend, scale_factor=4, mode="bicubic" if len(size) == 2 else "trilinear")
    field = functional.grid_sample(smooth, places, mode="bilinear", padding_mode="border", align_corners=False)
    # 2 is the target's side in [-1, 1]; a view of twice the field of view moves by half as much of its own side
    return grid + field.movedim(1, -1) * (2 / scale)
