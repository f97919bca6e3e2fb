"""Read one block: every pyramid level once, all annotators' layers at once, in the stored dtype; then cut its patches.

Reading and cutting are apart, because who cuts decides what it costs. A read task cuts its patches, which then travel. A
training worker that reads for itself cuts straight into the batch: each pixel is copied once after it was decoded.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from casebook import IGNORE, Case, open_case
from rayters.patches.cache import Cache, CachedCase
from rayters.patches.plan import BlockTask
from rayters.patches.view import Request
from rayters.patches.window import Windows, downsampling, level_for, mirrored, windows

Block = dict[str, NDArray[Any]]  # the columns of a batch: views, labels, patch, case, origin_px0

_open = lru_cache(maxsize=256)(open_case)


@lru_cache(maxsize=256)
def _cached(url: str, cache: Cache) -> CachedCase:
    return cache.case(_open(url))


class HasPixels(Protocol):
    """An image with its pyramid: a case on disk, one behind a cache, or one in memory."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]: ...
    def read_image(self, level: int, origin: Sequence[int], size: Sequence[int]) -> NDArray[Any]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Pixels:
    """A decoded box of one level, and the windows of one view in it.

    box: (C or A, *box), its first pixel is pixel ``low`` of a level of ``shape``. slices: per patch, None if it needs more than that.
    """

    box: NDArray[Any]
    low: tuple[int, ...]
    shape: tuple[int, ...]
    windows: Windows
    slices: tuple[tuple[slice, ...] | None, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fetched:
    """A block that was read and not yet cut: one Pixels per view, and one for the labels."""

    task: BlockTask
    views: tuple[Pixels, ...]
    labels: Pixels
    border: str

    @property
    def patches(self) -> NDArray[np.int64]:
        return self.task.patches

    def empty(self, number: int) -> Block:
        """Room for ``number`` patches."""
        view, label = self.views[0], self.labels
        sides = view.windows.sizes
        return {
            "views": np.empty((number, len(self.views), len(view.box), *sides), dtype=view.box.dtype),
            "labels": np.empty((number, len(label.box), *label.windows.sizes), dtype=np.uint8),
            "patch": np.empty(number, dtype=np.int64),
            "case": np.empty(number, dtype=np.int64),
            "origin_px0": np.empty((number, len(sides)), dtype=np.int64),
        }

    def copy_patch(self, row: int, batch: Block, place: int) -> None:
        """Cut patch ``row`` of this block into row ``place`` of a batch."""
        for number, view in enumerate(self.views):
            where = view.slices[row]
            batch["views"][place, number] = cut_image(view, row) if where is None else view.box[(slice(None), *where)]
        where = self.labels.slices[row]
        batch["labels"][place] = (
            cut_labels(self.labels, row, self.border) if where is None else self.labels.box[(slice(None), *where)]
        )
        batch["patch"][place] = self.task.patches[row]
        batch["case"][place] = self.task.case
        batch["origin_px0"][place] = self.task.origins_px0[row]


def read_block(task: BlockTask, request: Request, border: str, cache: Cache | None = None) -> Block:
    """The patches of a task.

    Returns:
        "views" (P, V, C, *S) stored dtype, "labels" (P, A, *S) uint8, "patch" (P,), "case" (P,), "origin_px0" (P, axes) int64.
    """
    fetched = fetch_block(task, request, border, cache)
    out = fetched.empty(len(task))
    for row in range(len(task)):
        fetched.copy_patch(row, out, row)
    return out


def fetch_block(task: BlockTask, request: Request, border: str, cache: Cache | None = None) -> Fetched:
    """Read what the patches of a task need, and cut nothing yet."""
    case: Case | CachedCase = _open(task.row.url)
    if cache is not None:
        case = _cached(task.row.url, cache)
    return Fetched(
        task=task,
        views=fetch_views(case, task, request),
        labels=fetch_labels(case, task, request),
        border=border,
    )


def fetch_views(case: Case | CachedCase, task: BlockTask, request: Request) -> tuple[Pixels, ...]:
    """One Pixels per view of the patches of a task."""
    return views_at(case, task.origins_px0, request)


def views_at(case: HasPixels, origins_px0: NDArray[np.int64], request: Request) -> tuple[Pixels, ...]:
    """One Pixels per view of the targets that start at ``origins_px0`` (P, axes); views of one level share one read."""
    views_of = defaultdict(list)
    for number, view in enumerate(request.views):
        views_of[level_for(view, case.shapes)].append(number)
    found: dict[int, Pixels] = {}
    for level, numbers in views_of.items():
        shape, down = case.shapes[level], downsampling(case.shapes, level)
        sets = [windows(request.views[number], request.target, origins_px0, down) for number in numbers]
        low, high = hull(sets, shape)
        box = case.read_image(level, low, tuple(h - x for h, x in zip(high, low, strict=True)))
        for number, each in zip(numbers, sets, strict=True):
            found[number] = Pixels(box=box, low=low, shape=shape, windows=each, slices=tuple(each.slices(low, shape)))
    return tuple(found[number] for number in range(len(request.views)))


def fetch_labels(case: Case | CachedCase, task: BlockTask, request: Request) -> Pixels:
    """(A, *box) in the order of request.annotators; a plane of IGNORE for who drew nothing in this case."""
    level = level_for(request.target, case.shapes)
    shape = case.shapes[level]
    each = windows(request.target, request.target, task.origins_px0, downsampling(case.shapes, level))
    low, high = hull([each], shape)
    size = tuple(h - x for h, x in zip(high, low, strict=True))
    if any(layer.id in request.annotators for layer in case.layers):
        box = case.read_labels(request.annotators, level, low, size)
    else:
        box = np.full((len(request.annotators), *size), IGNORE, dtype=np.uint8)
    return Pixels(box=box, low=low, shape=shape, windows=each, slices=tuple(each.slices(low, shape)))


def hull(sets: Sequence[Windows], shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The smallest box of the level that holds every pixel that the windows need, mirrored ones included."""
    boxes = [each.hull(shape) for each in sets]
    low = tuple(min(box[0][axis] for box in boxes) for axis in range(len(shape)))
    high = tuple(max(box[1][axis] for box in boxes) for axis in range(len(shape)))
    return low, high


def cut_image(pixels: Pixels, row: int) -> NDArray[Any]:
    """One window, (C, *S), the long way: mirrored or resampled."""
    window = pixels.windows.spans(row)
    part = take(pixels, [span.covered() for span in window])
    if all(span.exact for span in window):
        return part
    mean = part.astype(np.float32)
    for axis, span in enumerate(window, start=1):
        if not span.exact:
            mean = np.moveaxis(np.tensordot(span.weights(), mean, axes=(1, axis)), 0, axis)
    return np.rint(mean) if np.issubdtype(part.dtype, np.integer) else mean


def cut_labels(pixels: Pixels, row: int, border: str) -> NDArray[np.uint8]:
    """One window of the labels, (A, *S): nearest, and beyond the case as the border rule says."""
    wanted = [span.nearest() for span in pixels.windows.spans(row)]
    part: NDArray[np.uint8] = take(pixels, wanted)
    if border == "ignore":
        part = part.copy()
        for axis, (index, extent) in enumerate(zip(wanted, pixels.shape, strict=True), start=1):
            np.moveaxis(part, axis, 0)[(index < 0) | (index >= extent)] = IGNORE
    return part


def take(pixels: Pixels, index: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    """(C or A, *len(index)) pixels of the level by number, per axis; numbers in a row that need no mirror are a slice, which is fast."""
    part = pixels.box
    for axis, (numbers, extent, low) in enumerate(zip(index, pixels.shape, pixels.low, strict=True), start=1):
        first, last = int(numbers[0]), int(numbers[-1])
        if first >= 0 and last < extent and last - first + 1 == len(numbers):
            part = part[(*(slice(None),) * axis, slice(first - low, last - low + 1))]
        else:
            part = np.take(part, mirrored(numbers, extent) - low, axis=axis)
    return part
