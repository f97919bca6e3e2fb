"""Small pictures for a report: the image from a coarse level, and who drew what over it; as data URIs, so that a report is one file."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from casebook import IGNORE
from casebook.documents import colour
from rayters.reports.predicted import on_grid
from rayters.reports.scores import Compared

SIDE_PX = 320
CONSENSUS = (255, 255, 255)
Labels = NDArray[np.uint8]
Window = tuple[tuple[int, ...], tuple[int, ...]]  # first pixel and one past the last, on the grid that is compared
Rgb = NDArray[np.uint8]


def picture(seen: Compared, window: Window | None = None) -> tuple[Rgb, tuple[Any, ...]]:
    """(Y, X, 3) the image in a window, stretched and at least SIDE_PX wide where small; and the index of that plane and window.

    A volume is shown by the slice in the middle of the window, or without one by that with most foreground.
    """
    shape = seen.case.shapes[seen.level]
    low, high = window or ((0,) * len(shape), shape)
    index: tuple[Any, ...] = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    if len(shape) == 3:
        depth = (low[0] + high[0] - 1) // 2 if window else _fullest(seen)
        index = (depth, *index[1:])
        low, high = (depth, *low[1:]), (depth + 1, *high[1:])
    raw = seen.case.read_image(seen.level, low, tuple(b - a for a, b in zip(low, high, strict=True)))
    flat = raw[:, 0] if raw.ndim == 4 else raw
    return _stretched(flat), index


def _fullest(seen: Compared) -> int:
    planes = [*seen.labels.values(), *seen.annotators.values()]
    drawn = sum((((p > 0) & (p != IGNORE)).sum(axis=(1, 2)) for p in planes), np.zeros(planes[0].shape[0]))
    return int(np.argmax(drawn))


def _stretched(channels: NDArray[Any]) -> Rgb:
    """(C, Y, X) of any type -> (Y, X, 3); colours as they are, one channel between its percentiles."""
    if len(channels) == 3 and channels.dtype == np.uint8:
        return np.ascontiguousarray(np.moveaxis(channels, 0, -1))
    one = channels[0].astype(np.float32)
    low, high = np.percentile(one, (0.5, 99.5))
    grey = np.clip((one - low) / max(float(high - low), 1e-9) * 255, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def outlined(image: Rgb, drawings: Sequence[tuple[Labels, tuple[int, int, int]]]) -> Rgb:
    """The image with the outline of every drawing (Y, X) in its colour, the last on top; enlarged first, so that lines stay thin."""
    factor = max(1, SIDE_PX // max(image.shape[:2]))
    size = (image.shape[0] * factor, image.shape[1] * factor)
    shown = image.repeat(factor, 0).repeat(factor, 1).copy()
    for labels, rgb in drawings:
        fine = on_grid(np.where(labels == IGNORE, 0, labels)[None], size)[0]
        shown[_edges(fine)] = rgb
    return shown


def _edges(labels: Labels) -> NDArray[np.bool_]:
    """Pixels of an object that touch another class."""
    padded = np.pad(labels, 1, mode="edge")
    inner = padded[1:-1, 1:-1]
    apart = np.zeros(labels.shape, bool)
    for y, x in ((0, 1), (2, 1), (1, 0), (1, 2)):
        apart |= padded[y : y + labels.shape[0], x : x + labels.shape[1]] != inner
    return np.asarray(apart & (inner > 0))


def person_colour(index: int) -> tuple[int, int, int]:
    """The colour of an annotator, the same all over a report."""
    r, g, b, _ = colour(index + 1)
    return r, g, b


def overlay(seen: Compared, consensus: Labels, who: Mapping[str, int], window: Window | None = None) -> str:
    """A data URI: outlines of some annotators in their colours (name -> their number), and of the consensus in white."""
    image, index = picture(seen, window)
    drawings = [(seen.annotators[name][index], person_colour(n)) for name, n in who.items() if name in seen.annotators]
    return data_uri(outlined(image, [*drawings, (consensus[index], CONSENSUS)]))


def data_uri(image: Rgb) -> str:
    """JPEG, at most SIDE_PX * 2 on its longer side."""
    shown = Image.fromarray(image)
    shown.thumbnail((2 * SIDE_PX, 2 * SIDE_PX))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def around(low: Sequence[int], high: Sequence[int], shape: Sequence[int], least: int = 64) -> Window:
    """A window with some surroundings, at least ``least`` pixels in y and x, inside the shape."""
    first, past = list(low), list(high)
    for axis in range(len(shape) - 2, len(shape)):
        middle, side = (low[axis] + high[axis]) // 2, max(least, 2 * (high[axis] - low[axis]))
        first[axis] = max(0, min(middle - side // 2, shape[axis] - side))
        past[axis] = min(shape[axis], first[axis] + side)
    return tuple(first), tuple(past)
