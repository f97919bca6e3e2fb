"""Prediction of a picture, or of a piece of a case: read once, looked at tile by tile, blended.

    predict_picture(model, image)                     pixels in memory, as somebody uploaded them
    predict_region(model, case, Region(...))          a piece of a case on disk; every pyramid level is read once
    predict_region((model, another), case)            an ensemble: the mean of what its members believe

Memory is that of the piece: its pixels, and its maps. Whole slides are predicted piece by piece, see jobs/predict.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casebook import Case
from rayters.inference.blend import Canvas, Stack, stack_of, stacked
from rayters.inference.maps import Maps, mean_of
from rayters.inference.picture import Picture, check_finite
from rayters.inference.tiling import Box, Tiling, flips_of, gaussian, tiles_over
from rayters.inference.tissue import Tissue, find_tissue
from rayters.networks.task import Task
from rayters.patches.cache import CachedCase
from rayters.patches.read import Pixels, cut_image, views_at
from rayters.patches.view import Request
from rayters.training.model import Model
from rayters.training.step import autocast, normalised

Ensemble = Model | tuple[Model, ...]
Source = Case | CachedCase | Picture


@dataclass(frozen=True, kw_only=True)
class Region:
    """A box of a case in pixels of level 0, on multiples of the model's downsampling; it may reach the case's end."""

    origin_px0: tuple[int, ...]
    size_px0: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiles:
    """A piece that was read and not yet looked at.

    box: the piece, in pixels of the model. origins: (T, axes) of the tiles, likewise. views: one decoded box per view.
    """

    box: Box
    origins: NDArray[np.int64]
    views: tuple[Pixels, ...]

    def cut(self, first: int, past: int) -> NDArray[Any]:
        """Tiles first .. past - 1 as (B, V, C, *S) in the stored dtype."""
        rows = range(first, past)
        one = self.views[0]
        out = np.empty((len(rows), len(self.views), len(one.box), *one.windows.sizes), dtype=one.box.dtype)
        for place, row in enumerate(rows):
            for number, view in enumerate(self.views):
                where = view.slices[row]
                out[place, number] = cut_image(view, row) if where is None else view.box[(slice(None), *where)]
        return out


def predict_picture(
    model: Ensemble, image: NDArray[Any], *, tiling: Tiling = Tiling(), spacing: tuple[float, ...] | None = None
) -> Maps:
    """What a model makes of a picture (C, *S) of any integer or floating type; spacing of its pixels, any unit, if they are not cubes.

    Raises:
        ValueError: other channels or axes than the model was trained on, or pixels that are not finite.
    """
    return predict_region(model, Picture(image, spacing), tiling=tiling)


def predict_region(model: Ensemble, case: Source, region: Region | None = None, *, tiling: Tiling = Tiling()) -> Maps:
    """What a model makes of a piece of a case; of all of it without a region. Maps have the model's resolution.

    Raises:
        ValueError: the case has other channels, axes or classes than the model, or the members of an ensemble differ.
    """
    members = members_of(model)
    fits(members[0].task, case)
    box = box_of(members[0], case, region)
    tissue = tissue_of(case) if tiling.skip_glass else None
    return look(members, [read_tiles(member, case, box, tiling, tissue) for member in members], tiling)


def members_of(model: Ensemble) -> tuple[Model, ...]:
    """A model is an ensemble of one.

    Raises:
        ValueError: no member, or members that do not speak of the same channels, classes, annotators and resolution.
    """
    members = (model,) if isinstance(model, Model) else model
    if not members:
        raise ValueError("an ensemble without a member: give at least one model")
    spoken = {(m.task.channels, m.classes, m.annotators, m.task.axes, m.run.downsampling) for m in members}
    if len(spoken) > 1:
        raise ValueError(
            "the members of an ensemble differ in channels, classes, annotators, axes or downsampling: "
            + "; ".join(str(each) for each in sorted(spoken))
        )
    return members


def fits(task: Task, case: Source) -> None:
    """Raises:
    ValueError: when the case is not of the kind that the model was trained on.
    """
    axes, name = len(case.shapes[0]), "the picture" if isinstance(case, Picture) else case.name
    if case.channels != task.channels:
        raise ValueError(
            f"{name} has {case.channels} channels, the model was trained on {task.channels}: "
            "convert the image (a grey model takes no colours), or train a model on such images"
        )
    if axes != task.axes:
        raise ValueError(
            f"{name} has {axes} spatial axes, the model was trained on {task.axes}: a slice is (C, Y, X), a volume (C, Z, Y, X)"
        )


def map_shape(model: Model, case: Source) -> tuple[int, ...]:
    """Pixels of the maps of a whole case."""
    return tuple(-(-side // model.run.downsampling) for side in case.shapes[0])


def box_of(model: Model, case: Source, region: Region | None) -> Box:
    """The region in pixels of the model.

    Raises:
        ValueError: when it leaves the case, or does not lie on the model's pixels.
    """
    shape, down = map_shape(model, case), model.run.downsampling
    if region is None:
        return (0,) * len(shape), shape
    low = tuple(origin // down for origin in region.origin_px0)
    high = tuple(-(-(o + s) // down) for o, s in zip(region.origin_px0, region.size_px0, strict=True))
    inside = all(0 <= a < b <= n for a, b, n in zip(low, high, shape, strict=True))
    if not inside or any(origin % down for origin in region.origin_px0):
        raise ValueError(
            f"{region} does not lie in a case of {case.shapes[0]} px0, on multiples of {down} px0: move or shrink it"
        )
    return low, high


def tissue_of(case: Source) -> Tissue:
    """The tissue of a case; computed once for all pieces of a case on disk."""
    if isinstance(case, Picture):
        return find_tissue(case)
    return _tissue(case if isinstance(case, Case) else case.remote)


@lru_cache(maxsize=16)
def _tissue(case: Case) -> Tissue:
    return find_tissue(case)


def read_tiles(model: Model, case: Source, box: Box, tiling: Tiling, tissue: Tissue | None) -> Tiles:
    """Reads what the tiles over a box need: each pyramid level once, whatever the number of tiles."""
    request, down = model.run.request(()), model.run.downsampling
    tile = request.target.size_px
    origins = tiles_over(map_shape(model, case), tile, tiling.overlap, box)
    if tissue is not None:
        origins = origins[tissue.touches(origins * down, request.target.field_of_view_px0)]
    return Tiles(box=box, origins=origins, views=_pixels(case, origins * down, request))


def _pixels(case: Source, origins_px0: NDArray[np.int64], request: Request) -> tuple[Pixels, ...]:
    if not len(origins_px0):
        return ()
    views = views_at(case, origins_px0, request)
    for view in views:
        check_finite(view.box)
    return views


@torch.inference_mode()
def look(members: tuple[Model, ...], read: list[Tiles], tiling: Tiling) -> Maps:
    """What an ensemble makes of a piece that each member has read."""
    return mean_of([_look(model, tiles, tiling) for model, tiles in zip(members, read, strict=True)])


def _look(model: Model, tiles: Tiles, tiling: Tiling) -> Maps:
    device = next(model.net.parameters()).device
    canvas: Canvas | None = None
    for origins, maps, stack in _batches(model, tiles, tiling, device):
        canvas = canvas or Canvas(tiles.box, stack, gaussian(model.task.patch_px, device))
        canvas.add(maps, origins)
    return canvas.done() if canvas else _nothing(model, tiles.box, tiling, device)


def _batches(
    model: Model, tiles: Tiles, tiling: Tiling, device: torch.device
) -> Iterator[tuple[NDArray[np.int64], Tensor, Stack]]:
    for first in range(0, len(tiles.origins), tiling.batch_size):
        past = min(first + tiling.batch_size, len(tiles.origins))
        views = normalised(tiles.cut(first, past), model.task, device)
        maps, stack = forward(model, views, tiling)
        yield tiles.origins[first:past], maps, stack


def forward(model: Model, views: Tensor, tiling: Tiling) -> tuple[Tensor, Stack]:
    """Views (B, V, C, *S) -> maps (B, N, *S), the mean over the flips."""
    total: Tensor | None = None
    choices = flips_of(model.task.axes, tiling.flips)
    for flip in choices:
        with autocast(model.run, views.device):
            outputs = model.net(views.flip(flip) if flip else views)
        prediction = model.run.method.predict(outputs)
        stack = stack_of(prediction, outputs, model.run.gaze.scales(), tiling)
        maps = stacked(prediction, outputs, stack)
        maps = maps.flip(flip) if flip else maps
        total = maps if total is None else total.add_(maps)
    assert total is not None
    return total.div_(len(choices)) if len(choices) > 1 else total, stack


def _nothing(model: Model, box: Box, tiling: Tiling, device: torch.device) -> Maps:
    """The maps of a piece of empty glass."""
    return Canvas(box, _kinds(model, tiling), gaussian(model.task.patch_px, device)).done()


@torch.inference_mode()
def kinds(members: tuple[Model, ...], tiling: Tiling) -> Stack:
    """Which maps an ensemble has in common, found out on a blank tile."""
    each = [_kinds(member, tiling) for member in members]
    looks = {stack.gaze for stack in each}
    return Stack(
        classes=each[0].classes,
        annotators=min(stack.annotators for stack in each),
        confusion=tiling.confusion,
        gaze=looks.pop() if len(looks) == 1 else (),
    )


def _kinds(model: Model, tiling: Tiling) -> Stack:
    device = next(model.net.parameters()).device
    views = torch.zeros(1, len(model.run.gaze.scales()), model.task.channels, *model.task.patch_px, device=device)
    return forward(model, views, tiling)[1]
