"""A picture in memory that reads as a case does: its pyramid is computed when a level is asked for."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.pyramid import level_factors, level_shape, mean_down


class Picture:
    """An image (C, *S) of any integer or floating type, with the levels that a case of the same pixels would have."""

    def __init__(self, image: NDArray[Any], spacing: tuple[float, ...] | None = None) -> None:
        """spacing: of the pixels, any unit; None: the same on every axis.

        Raises:
            ValueError: the image has not 3 or 4 axes, is empty, or holds NaN or infinities.
        """
        if image.ndim not in (3, 4) or not image.size:
            raise ValueError(f"an image of shape {image.shape}: (C, Y, X) or (C, Z, Y, X), not empty, was expected")
        check_finite(image)
        shape = image.shape[1:]
        self.levels = [image]
        self.factors = level_factors(shape, spacing or (1.0,) * len(shape))
        self.channels, self.dtype = len(image), image.dtype.name
        self.spacing = spacing or (1.0,) * len(shape)

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Per level, level 0 first."""
        return tuple(level_shape(self.levels[0].shape[1:], factor) for factor in self.factors)

    def read_image(self, level: int, origin: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
        """(C, *size) pixels of a level."""
        while len(self.levels) <= level:
            before, after = self.factors[len(self.levels) - 1 : len(self.levels) + 1]
            step = tuple(b // a for a, b in zip(before, after, strict=True))
            self.levels.append(_halved(self.levels[-1], step))
        return self.levels[level][(slice(None), *(slice(o, o + s) for o, s in zip(origin, size, strict=True)))]


def check_finite(pixels: NDArray[Any]) -> None:
    """Raises:
    ValueError: NaN or infinite pixels: a convolution would spread them over all of a tile.
    """
    if np.issubdtype(pixels.dtype, np.floating) and not (finite := np.isfinite(pixels)).all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{int((~finite).sum())} pixels are NaN or infinite, the first at {first} (channel, then pixel): replace them, "
            "as numpy.nan_to_num does, or by what the scanner writes outside of its field"
        )


def _halved(image: NDArray[Any], step: tuple[int, ...]) -> NDArray[Any]:
    """The next level: integers as the casebook rounds them, floats as they are."""
    if np.issubdtype(image.dtype, np.integer):
        return mean_down(image, step)
    for axis, by in enumerate(step, start=1):
        if by == 2:
            whole = np.concatenate([image, image.take([-1], axis)], axis) if image.shape[axis] % 2 else image
            image = whole.reshape(*whole.shape[:axis], -1, 2, *whole.shape[axis + 1 :]).mean(
                axis + 1, dtype=image.dtype
            )
    return image
