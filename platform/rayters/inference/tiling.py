"""Tiles: where a net looks, one after the other, until all of a case has been seen, and how what it saw is weighed.

extent 10, tile 4, overlap 1/4
0123456789
[--]                 The grid belongs to the case, not to the piece of it that is being predicted: whoever predicts a piece
   [--]              looks at the same tiles as whoever predicts all of it. The last tile ends where the case ends, as in
      [--]           MONAI's sliding_window_inference, and weights are MONAI's Gaussian (sigma: an eighth of the side).
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[tuple[int, ...], tuple[int, ...]]  # first pixel, one past the last


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a case is looked at.

    Raises:
        ValueError: when a number is out of its range.
    """

    overlap: float = 0.25  # share of a tile's side that it has in common with its neighbour, in [0, 0.9]
    batch_size: int = 8  # tiles that go through the net at once
    flips: bool = False  # test-time augmentation: the mean over all combinations of flipped axes, 4 or 8 times the work
    skip_glass: bool = False  # leave out tiles of empty glass (Otsu on a coarse level); they become background
    annotators: bool = True  # also what each annotator would draw, where the method knows
    confusion: bool = False  # also the map of every entry of every confusion, which takes A * K * K maps

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"overlap={self.overlap}: a share of the tile's side in [0, 0.9] was expected")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: it must be at least 1")


def starts(extent: int, tile: int, overlap: float) -> NDArray[np.int64]:
    """First pixels of the tiles along one axis; a case shorter than a tile has one, at 0.

    >>> starts(10, 4, 0.25).tolist(), starts(3, 4, 0.25).tolist()
    ([0, 3, 6], [0])
    """
    step = max(1, int(tile * (1 - overlap)))
    last = max(extent - tile, 0)
    return np.append(np.arange(0, last, step, dtype=np.int64), last)


def tiles_over(shape: tuple[int, ...], tile: tuple[int, ...], overlap: float, box: Box) -> NDArray[np.int64]:
    """(T, axes) first pixels of the tiles of a case of ``shape`` that touch ``box``, in scan order."""
    inside = []
    for extent, side, low, high in zip(shape, tile, *box, strict=True):
        along = starts(extent, side, overlap)
        inside.append(along[(along < high) & (along + side > low)])
    return np.array(list(product(*inside)), dtype=np.int64).reshape(-1, len(shape))


def gaussian(tile: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """(*tile) weights in [1e-3, 1]: most in the middle, where a net sees most of what surrounds a pixel."""
    from monai.data.utils import compute_importance_map

    weights: Tensor = compute_importance_map(tile, mode="gaussian", sigma_scale=0.125, device=device)
    return weights


def flips_of(axes: int, flips: bool) -> tuple[tuple[int, ...], ...]:
    """The sets of spatial axes that are flipped together, the empty one first; axes count from the end.

    >>> flips_of(2, True)
    ((), (-1,), (-2,), (-2, -1))
    """
    if not flips:
        return ((),)
    choices = product((False, True), repeat=axes)
    return tuple(tuple(axis - axes for axis, chosen in enumerate(each) if chosen) for each in choices)
