"""Read the patches of one block: every pyramid level once, all annotators' layers at once, and the stored dtype goes out."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook import IGNORE, Case, open_case
from rayters.patches.plan import BlockTask
from rayters.patches.view import Request, View
from rayters.patches.window import Span, downsampling, level_for, mirrored, spans

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
        places = [
            (out[patch, number], window)
            for number in numbers
            for patch, window in enumerate(windows(case, level, task, request.views[number], request.target))
        ]
        low, high = hull([window for _, window in places], case.shapes[level])
        pixels = case.read_image(level, low, tuple(h - x for h, x in zip(high, low, strict=True)))
        for to, window in places:
            cut_image(pixels, low, case.shapes[level], window, to)
    return out


def read_labels(case: Case, task: BlockTask, request: Request, border: str) -> NDArray[np.uint8]:
    """(P, A, *S) in the order of request.annotators; IGNORE where one drew nothing, and by choice beyond the case."""
    out = np.full((len(task), len(request.annotators), *request.target.size_px), IGNORE, dtype=np.uint8)
    drawn = [number for number, name in enumerate(request.annotators) if any(layer.id == name for layer in case.layers)]
    if not drawn:
        return out
    level = level_for(request.target, case.shapes)
    places = windows(case, level, task, request.target, request.target)
    low, high = hull(places, case.shapes[level])
    layers = [request.annotators[number] for number in drawn]
    pixels = case.read_labels(layers, level, low, tuple(h - x for h, x in zip(high, low, strict=True)))
    rows: list[int] | slice = drawn if len(drawn) < len(request.annotators) else slice(None)
    for patch, window in enumerate(places):
        out[patch, rows] = cut_labels(pixels, low, case.shapes[level], window, border)
    return out


def windows(case: Case, level: int, task: BlockTask, view: View, target: View) -> list[tuple[Span, ...]]:
    down = downsampling(case.shapes, level)
    return [spans(view, target, origin, down) for origin in task.origins_px0]


def hull(places: Sequence[tuple[Span, ...]], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The smallest box of the level that holds every pixel that the windows need, mirrored ones included."""
    low, high = [], []
    for axis, extent in enumerate(shape):
        ends = [(int(c[0]), int(c[-1])) for c in (window[axis].covered() for window in places)]
        first, last = min(a for a, _ in ends), max(b for _, b in ends)
        if first < 0 or last >= extent:
            folded = np.concatenate([mirrored(np.arange(a, b + 1), extent) for a, b in ends])
            first, last = int(folded.min()), int(folded.max())
        low.append(first)
        high.append(last + 1)
    return tuple(low), tuple(high)


def cut_image(
    pixels: NDArray[Any], low: tuple[int, ...], shape: tuple[int, ...], window: tuple[Span, ...], to: NDArray[Any]
) -> None:
    """Write one window, (C, *S), into ``to``; ``pixels`` (C, *box) starts at ``low`` in a level of ``shape``."""
    part = take(
        pixels, [mirrored_unless_inside(span.covered(), n) - x for span, n, x in zip(window, shape, low, strict=True)]
    )
    if all(span.exact for span in window):
        to[...] = part
        return
    mean = part.astype(np.float32)
    for axis, span in enumerate(window, start=1):
        if not span.exact:
            mean = np.moveaxis(np.tensordot(span.weights(), mean, axes=(1, axis)), 0, axis)
    to[...] = np.rint(mean) if np.issubdtype(to.dtype, np.integer) else mean


def cut_labels(
    pixels: NDArray[np.uint8], low: tuple[int, ...], shape: tuple[int, ...], window: tuple[Span, ...], border: str
) -> NDArray[np.uint8]:
    """One window of the labels, (A, *S)."""
    wanted = [span.nearest() for span in window]
    part = take(pixels, [mirrored_unless_inside(i, n) - x for i, n, x in zip(wanted, shape, low, strict=True)])
    if border == "ignore":
        for axis, (index, extent) in enumerate(zip(wanted, shape, strict=True), start=1):
            outside = (index < 0) | (index >= extent)
            if outside.any():
                part = part.copy()
                np.moveaxis(part, axis, 0)[outside] = IGNORE
    return part


def mirrored_unless_inside(index: NDArray[np.int64], extent: int) -> NDArray[np.int64]:
    return index if index[0] >= 0 and index[-1] < extent else mirrored(index, extent)


def take(pixels: NDArray[Any], index: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    """pixels[:, index[0], index[1], ...] as an outer product; consecutive numbers are a slice, which copies nothing."""
    for axis, numbers in enumerate(index, start=1):
        first, last = int(numbers[0]), int(numbers[-1])
        if last - first + 1 == len(numbers) and (len(numbers) < 3 or bool((np.diff(numbers) == 1).all())):
            pixels = pixels[(slice(None),) * axis + (slice(first, last + 1),)]
        else:
            pixels = np.take(pixels, numbers, axis=axis)
    return pixels
