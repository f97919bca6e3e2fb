"""What every format yields: pixels, how big they are, and where they lie in the patient."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.errors import CaseFormatError
from casebook.source import ImageSource


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """Position and orientation in the patient, millimetres: position of voxel (z, y, x) = origin + matrix @ (z, y,
    x).
    """

    origin: tuple[float, float, float]
    matrix: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """An opened file: `pixels` is (C, *S), an array or a source read box by box.

    spacing_um: None when the file does not say. notes: what else is worth keeping (magnification, vendor ...).
    """

    pixels: NDArray[Any] | ImageSource
    spacing_um: tuple[float, ...] | None = None
    frame: Frame | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


def check_same_place(image: Opened, labels: Opened) -> None:
    """Refuses labels that lie elsewhere than the image, or on another grid.

    Raises:
        CaseFormatError: with both values.
    """
    a, b = tuple(image.pixels.shape[1:]), tuple(labels.pixels.shape[1:])
    if a != b:
        raise CaseFormatError(
            f"the mask is {_times(b)} px, the image {_times(a)} px: export the mask on the image's own grid"
        )
    if image.spacing_um and labels.spacing_um and not np.allclose(image.spacing_um, labels.spacing_um, rtol=0.01):
        raise CaseFormatError(
            f"the mask has pixels of {_show(labels.spacing_um)} um, the image of {_show(image.spacing_um)} um: "
            "one of the two headers is wrong"
        )
    if image.frame and labels.frame:
        _check_frames(image.frame, labels.frame, a)


def _check_frames(image: Frame, labels: Frame, shape: tuple[int, ...]) -> None:
    """Compares where the two grids put their corners; a tenth of a voxel is rounding."""
    corners = np.array([[(shape[axis] - 1) * (corner >> axis & 1) for axis in range(3)] for corner in range(8)], float)
    there = [corners @ np.array(f.matrix).T + np.array(f.origin) for f in (image, labels)]
    voxel = float(np.linalg.norm(np.array(image.matrix), axis=0).min())
    worst = float(np.abs(there[0] - there[1]).max())
    if worst > 0.1 * voxel:
        raise CaseFormatError(
            f"the mask lies up to {worst:.2f} mm from the image: its origin is {_show(labels.origin)} mm and its axes "
            f"{_axes(labels)}, the image's {_show(image.origin)} mm and {_axes(image)}: export the mask in the "
            "image's space"
        )


def _show(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _axes(frame: Frame) -> str:
    return " ".join(_show(tuple(column)) for column in np.array(frame.matrix).T)
