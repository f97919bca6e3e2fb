"""Read the patches of one block: every pyramid level once, all annotators' layers at once, and the stored dtype goes out."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook import IGNORE, Case, open_case
from rayters.patches.plan import BlockTask
from rayters.patches.view import Request
from rayters.patches.window import Span, Windows, downsampling, level_for, mirrored, windows

Block = dict[str, NDArray[Any]]  # the columns of a batch: views, labels, patch, case, origin_px0

_open = lru_cache(maxsize=256)(open_case)


def read_block(task: BlockTask, request: Request, border: str) -> Block:
    """The patches of a task.

    Returns:
        "views" (P, V, C, *S) stored dtype, "labels" (P, A, *S) uint8, "patch" (P,), "case" (P,), "origin_px0" (P, axes) int64.
    """
    case = _open(task.row.url)
    return {
        "views": read_views(case, task, request),
        "labels": read_labels(case, task, request, border),
        "patch": task.patches,
        "case": np.full(len(task), task.case, dtype=np.int64),
        "origin_px0": task.origins_px0,
    }


def read_views(case: Case, task: BlockTask, request: Request) -> NDArray[Any]:
    """(P, V, C, *S), one read per level that any view needs."""
    out = np.empty((len(task), len(request.views), case.channels, *request.views[0].size_px), dtype=case.dtype)
    views_of = defaultdict(list)
    for number, view in enumerate(request.views):
        views_of[level_for(view, case.shapes)].append(number)
    for level, numbers in views_of.items():
        shape, down = case.shapes[level], downsampling(case.shapes, level)
        sets = [windows(request.views[number], request.target, task.origins_px0, down) for number in numbers]
        low, high = hull(sets, shape)
        pixels = case.read_image(level, low, tuple(h - x for h, x in zip(high, low, strict=True)))
        for number, each in zip(numbers, sets, strict=True):
            for patch, place in enumerate(each.slices(low, shape)):
                if place is not None:
                    out[patch, number] = pixels[(slice(None), *place)]
                else:
                    out[patch, number] = cut_image(pixels, low, shape, each.spans(patch))
    return out


def read_labels(case: Case, task: BlockTask, request: Request, border: str) -> NDArray[np.uint8]:
    """(P, A, *S) in the order of request.annotators; IGNORE where one drew nothing, and by choice beyond the case."""
    out = np.empty((len(task), len(request.annotators), *request.target.size_px), dtype=np.uint8)
    if not any(layer.id in request.annotators for layer in case.layers):
        out[...] = IGNORE
        return out
    level = level_for(request.target, case.shapes)
    shape, down = case.shapes[level], downsampling(case.shapes, level)
    each = windows(request.target, request.target, task.origins_px0, down)
    low, high = hull([each], shape)
    pixels = case.read_labels(request.annotators, level, low, tuple(h - x for h, x in zip(high, low, strict=True)))
    for patch, place in enumerate(each.slices(low, shape)):
        if place is not None:
            out[patch] = pixels[(slice(None), *place)]
        else:
            out[patch] = cut_labels(pixels, low, shape, each.spans(patch), border)
    return out


def hull(sets: Sequence[Windows], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The smallest box of the level that holds every pixel that the windows need, mirrored ones included."""
    boxes = [each.hull(shape) for each in sets]
    low = tuple(min(box[0][axis] for box in boxes) for axis in range(len(shape)))
    high = tuple(max(box[1][axis] for box in boxes) for axis in range(len(shape)))
    return low, high


def cut_image(
    pixels: NDArray[Any], low: tuple[int, ...], shape: tuple[int, ...], window: tuple[Span, ...]
) -> NDArray[Any]:
    """One window, (C, *S), the long way: mirrored or resampled. ``pixels`` (C, *box) starts at ``low`` in a level of ``shape``."""
    index = [mirrored(span.covered(), n) - x for span, n, x in zip(window, shape, low, strict=True)]
    part = pixels[(slice(None), *np.ix_(*index))]
    if all(span.exact for span in window):
        return part
    mean = part.astype(np.float32)
    for axis, span in enumerate(window, start=1):
        if not span.exact:
            mean = np.moveaxis(np.tensordot(span.weights(), mean, axes=(1, axis)), 0, axis)
    return np.rint(mean) if np.issubdtype(pixels.dtype, np.integer) else mean


def cut_labels(
    pixels: NDArray[np.uint8], low: tuple[int, ...], shape: tuple[int, ...], window: tuple[Span, ...], border: str
) -> NDArray[np.uint8]:
    """One window of the labels, (A, *S): nearest, and beyond the case as the border rule says."""
    wanted = [span.nearest() for span in window]
    index = [mirrored(i, n) - x for i, n, x in zip(wanted, shape, low, strict=True)]
    part = pixels[(slice(None), *np.ix_(*index))]
    if border == "ignore":
        for axis, (i, extent) in enumerate(zip(wanted, shape, strict=True), start=1):
            np.moveaxis(part, axis, 0)[(i < 0) | (i >= extent)] = IGNORE
    return part
