"""Several pictures at once: tiles of all of them share the batches that go through the net.

A picture gets the same maps as alone: a tile's answer does not depend on its neighbours in the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from rayters.inference.blend import Canvas
from rayters.inference.maps import Maps
from rayters.inference.picture import Picture
from rayters.inference.predict import Tiles, box_of, fits, forward, predict_picture, read_tiles
from rayters.inference.tiling import Tiling, gaussian
from rayters.training.model import Model
from rayters.training.step import normalised


def predict_together(model: Model, images: Sequence[NDArray[Any]], *, tiling: Tiling = Tiling()) -> list[Maps]:
    """What a model makes of pictures (C, *S), each of its own size and dtype.

    Raises:
        ValueError: one of them has other channels or axes than the model was trained on, or pixels that are not finite.
    """
    if len(images) == 1:
        return [predict_picture(model, images[0], tiling=tiling)]
    pictures = [Picture(image) for image in images]
    for picture in pictures:
        fits(model.task, picture)
    read = [read_tiles(model, picture, box_of(model, picture, None), tiling, None) for picture in pictures]
    return _look(model, read, tiling)


@torch.inference_mode()
def _look(model: Model, read: Sequence[Tiles], tiling: Tiling) -> list[Maps]:
    device = next(model.net.parameters()).device
    weights = gaussian(model.task.patch_px, device)
    canvases: dict[int, Canvas] = {}
    queue = [(number, row) for number, tiles in enumerate(read) for row in range(len(tiles.origins))]
    for first in range(0, len(queue), tiling.batch_size):
        part = queue[first : first + tiling.batch_size]
        views = torch.cat([normalised(read[n].cut(row, row + 1), model.task, device) for n, row in part])
        maps, stack = forward(model, views, tiling)
        for place, (number, row) in enumerate(part):
            canvas = canvases.setdefault(number, Canvas(read[number].box, stack, weights))
            canvas.add(maps[place : place + 1], read[number].origins[row : row + 1])
    return [canvases[number].done() for number in range(len(read))]
