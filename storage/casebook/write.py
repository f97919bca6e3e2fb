"""Writing a case in one pass: each block of the source is read once and becomes all the levels that it wholly owns.

The group's zarr.json is written last, so a case is whole or invisible. Finished blocks of large arrays leave a
marker; after a kill the
same call goes on where it stopped, and the result is the same to the bit.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed

from casebook.arrays import ArrayInfo, array_document, create, forget_handles, start_read, write_box
from casebook.block_plan import Round, level_chunks, plan_rounds
from casebook.case import Case, Layer
from casebook.documents import image_group, label_group, labels_registry
from casebook.errors import CaseFormatError, CaseNotFoundError, ConflictError
from casebook.labels import IGNORE, MAX_CLASSES
from casebook.location import (
    canonical,
    check_name,
    exists,
    join,
    last_name,
    list_names,
    read_json,
    remove,
    write_bytes,
    write_json,
)
from casebook.opening import open_case
from casebook.pyramid import level_factors, level_shape, mean_down, mode_down
from casebook.source import ImageSource, LabelSource, as_image, as_labels, check_labels

Progress = Callable[[int, int], None]
PARTIAL = ".partial"  # holds the markers while a case is being written


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How arrays are cut and compressed.

    image_chunk_px, label_chunk_px, volume_chunk_px, volume_label_chunk_px: sides in pixels, never bigger than the
    image.
    codec: 'zstd' (small) or 'lz4' (fast). shards: 'auto' gathers the chunks of one block into one object for slides
    of more than
    4096 chunks, 'always', 'never'.
    """

    image_chunk_px: tuple[int, int] = (512, 512)
    label_chunk_px: tuple[int, int] = (1024, 1024)
    volume_chunk_px: tuple[int, int, int] = (64, 128, 128)
    volume_label_chunk_px: tuple[int, int, int] = (64, 128, 128)
    codec: str = "zstd"
    shards: str = "auto"


@dataclass(frozen=True, kw_only=True)
class _Array:
    """One pyramid to write: its levels and the rounds that write them."""

    name: str  # '' for the image, else the layer's id
    levels: tuple[ArrayInfo, ...]
    factors: tuple[tuple[int, ...], ...]
    rounds: tuple[Round, ...]
    documents: tuple[dict[str, Any], ...]
    source: Any
    classes: tuple[str, ...]
    markers: str | None  # where finished blocks are noted; None for small arrays


def write_case(
    url: str | os.PathLike[str],
    image: Any,
    *,
    spacing_um: tuple[float, ...],
    classes: tuple[str, ...],
    layers: Mapping[Layer, Any],
    name: str | None = None,
    storage: Storage | None = None,
    existing: str = "refuse",
    intensity: tuple[float, float] = (1.0, 0.0),
    provenance: Mapping[str, Any] | None = None,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> Case:
    """Writes an image, its pyramid and its label layers; nothing is visible until all of it is there.

    image: (C, *S) array or ImageSource, uint8, int8, uint16 or int16. layers: (*S) arrays or LabelSources, values
    0..K-1 and IGNORE.
    existing: 'refuse' or 'replace' a whole case at the URL; an interrupted one is always resumed.
    scheduler: what dask.compute takes ('threads', 'synchronous', a distributed get); None chooses by size.
    progress: called with (blocks done, blocks in all).

    Raises:
        CaseFormatError: shapes, dtype or values are not what a case holds. ConflictError: a whole case is already
        there.
    """
    place = canonical(url)
    source = as_image(image)
    drawings = {layer: as_labels(labels) for layer, labels in layers.items()}
    _check(source, spacing_um, classes, drawings)
    _make_room(place, existing)
    shape = source.shape[1:]
    axes = ("z", "y", "x")[-len(shape) :]
    factors = level_factors(shape, spacing_um)
    arrays = _arrays(place, source, drawings, classes, factors, storage or Storage())
    _prepare(place, arrays)
    _run(arrays, scheduler, progress)
    for layer in drawings:
        group = label_group(layer=layer, axes=axes, factors=factors, spacing_um=spacing_um, classes=classes)
        write_json(join(place, "labels", layer.id, "zarr.json"), group)
    write_json(join(place, "labels", "zarr.json"), labels_registry(tuple(layer.id for layer in drawings)))
    remove_markers(place)
    title = name or default_name(place)
    ours: dict[str, Any] = {
        "name": title,
        "classes": list(classes),
        "complete": True,
        "intensity": list(intensity),
        "provenance": dict(provenance or {}),
    }
    group = image_group(
        name=title,
        axes=axes,
        factors=factors,
        spacing_um=spacing_um,
        channels=source.shape[0],
        dtype=source.dtype,
        ours=ours,
    )
    write_json(join(place, "zarr.json"), group)
    return open_case(place)


def default_name(url: str) -> str:
    return last_name(url).removesuffix(".zarr").removesuffix(".ome")


def _check(
    source: ImageSource, spacing_um: tuple[float, ...], classes: tuple[str, ...], drawings: Mapping[Layer, LabelSource]
) -> None:
    shape = source.shape[1:]
    if len(spacing_um) != len(shape) or not all(math.isfinite(s) and s > 0 for s in spacing_um):
        raise CaseFormatError(
            f"spacing_um {spacing_um} for an image of {shape} px: one positive number of micrometres per spatial "
            "axis was expected"
        )
    if not 2 <= len(classes) <= MAX_CLASSES or len(set(classes)) != len(classes):
        raise CaseFormatError(
            f"classes {classes}: 2 to {MAX_CLASSES} different names were expected, the first for background"
        )
    if len({layer.id.lower() for layer in drawings}) != len(drawings):
        raise CaseFormatError(
            f"two layers share a name: {[layer.id for layer in drawings]}; names differ by more than case"
        )
    for layer, labels in drawings.items():
        check_name(layer.id, "layer")
        if tuple(labels.shape) != tuple(shape):
            raise CaseFormatError(
                f"layer {layer.id!r} is {tuple(labels.shape)} px, the image {tuple(shape)} px: they must be drawn "
                "on the same grid"
            )


def _make_room(url: str, existing: str) -> None:
    """Leaves nothing visible at the URL, or refuses."""
    if not exists(join(url, "zarr.json")):
        return
    if existing != "replace":
        raise ConflictError(f"a whole case already lies at {url}: choose another URL, or existing='replace'")
    remove(join(url, "zarr.json"))  # first, so that readers never see a mixture
    remove(url)
    forget_handles()


def _arrays(
    url: str,
    source: ImageSource,
    drawings: Mapping[Layer, LabelSource],
    classes: tuple[str, ...],
    factors: tuple[tuple[int, ...], ...],
    storage: Storage,
) -> list[_Array]:
    flat = len(source.shape) == 3
    image_chunk: tuple[int, ...] = storage.image_chunk_px if flat else storage.volume_chunk_px
    label_chunk: tuple[int, ...] = storage.label_chunk_px if flat else storage.volume_label_chunk_px
    image = plan_array("", url, source, source.shape[0], source.dtype, factors, image_chunk, storage, ())
    return [
        image,
        *(plan_layer(url, layer, labels, classes, factors, label_chunk, storage) for layer, labels in drawings.items()),
    ]


def plan_layer(
    url: str,
    layer: Layer,
    labels: LabelSource,
    classes: tuple[str, ...],
    factors: tuple[tuple[int, ...], ...],
    chunk_px: tuple[int, ...],
    storage: Storage,
) -> _Array:
    return plan_array(layer.id, url, labels, 0, "uint8", factors, chunk_px, storage, classes)


def plan_array(
    name: str,
    url: str,
    source: Any,
    channels: int,
    dtype: str,
    factors: tuple[tuple[int, ...], ...],
    chunk_px: tuple[int, ...],
    storage: Storage,
    classes: tuple[str, ...],
) -> _Array:
    """The levels and rounds of one pyramid; channels 0 means a label map."""
    shape = tuple(source.shape[1:] if channels else source.shape)
    lead = (channels,) if channels else ()
    names = (("c",) if channels else ()) + ("z", "y", "x")[-len(shape) :]
    shapes = tuple(level_shape(shape, factor) for factor in factors)
    chunks = level_chunks(shapes, chunk_px)
    rounds = plan_rounds(shape, factors, chunk_px, tuple(c * (4 if len(shape) == 2 else 2) for c in chunk_px))
    owned = [region for r in rounds for region in r.owned]
    count = math.prod(-(-n // c) for n, c in zip(shapes[0], chunks[0], strict=True))
    sharded = bool(channels) and (storage.shards == "always" or (storage.shards == "auto" and count > 4096))
    base = join(url, "labels", name) if name else url
    levels, documents = [], []
    for level, (size, chunk, region) in enumerate(zip(shapes, chunks, owned, strict=True)):
        shard = lead + region if sharded else None
        documents.append(
            array_document(
                shape=lead + size,
                dtype=dtype,
                names=names,
                chunk=lead + chunk,
                shard=shard,
                codec=storage.codec,
                fill=0 if channels else IGNORE,
            )
        )
        levels.append(
            ArrayInfo(
                url=join(base, str(level)),
                zarr_format=3,
                shape=lead + size,
                dtype=dtype,
                chunk=lead + chunk,
                shard=shard or lead + chunk,
                names=names,
                complete=True,
            )
        )
    large = sum(len(r.blocks) for r in rounds) > 8
    return _Array(
        name=name,
        levels=tuple(levels),
        factors=factors,
        rounds=rounds,
        documents=tuple(documents),
        source=source,
        classes=classes,
        markers=join(url, PARTIAL, name or "image") if large else None,
    )


def _prepare(url: str, arrays: list[_Array]) -> None:
    """Creates the arrays, or finds them as an interrupted call with the same plan left them."""
    plan = hashlib.sha256(json.dumps([a.documents for a in arrays], sort_keys=True).encode()).hexdigest()
    note = join(url, PARTIAL, "plan.json")
    begun = read_plan(note)
    if begun == plan:
        return
    if begun is not None or list_names(url):
        remove(url)
    forget_handles()
    for array in arrays:
        create_arrays(array)
    write_json(note, {"plan": plan})


def read_plan(note: str) -> str | None:
    try:
        return str(read_json(note).get("plan"))
    except (CaseNotFoundError, CaseFormatError):
        return None


def create_arrays(array: _Array) -> None:
    for info, document in zip(array.levels, array.documents, strict=True):
        create(info.url, document)


def _run(arrays: list[_Array], scheduler: Any, progress: Progress | None) -> None:
    """All blocks, round by round; the blocks of a round are independent of each other."""
    total = sum(len(r.blocks) for array in arrays for r in array.rounds)
    done = 0
    for number in range(max(len(array.rounds) for array in arrays)):
        tasks = []
        for array in arrays:
            if number < len(array.rounds):
                finished = set(list_names(join(array.markers, str(number)))) if array.markers else set()
                tasks += [
                    (array, number, index)
                    for index in range(len(array.rounds[number].blocks))
                    if str(index) not in finished
                ]
                done += len(finished)
        done = _compute(tasks, scheduler, progress, done, total)


def _compute(
    tasks: list[tuple[_Array, int, int]], scheduler: Any, progress: Progress | None, done: int, total: int
) -> int:
    """A few blocks run here; many become one dask graph, which any scheduler may take."""
    if len(tasks) <= 8 and scheduler is None:
        for finished, task in enumerate(tasks, start=done + 1):
            write_block(*task)
            if progress:
                progress(finished, total)
    else:
        steps = itertools.count(done + 1)

        def count(*_: Any) -> None:
            if progress:
                progress(min(next(steps), total), total)

        graph = [delayed(write_block, pure=False)(*task) for task in tasks]
        with Callback(posttask=count):  # type: ignore[no-untyped-call]
            compute(*graph, scheduler=scheduler or "threads")  # type: ignore[no-untyped-call]
    return done + len(tasks)


def write_block(array: _Array, number: int, index: int) -> None:
    """Reads one block once and writes every level that it owns; then leaves its marker."""
    work = array.rounds[number]
    origin, size = work.blocks[index]
    block = _read_base(array, work, origin, size)
    base = max(work.base_level, 0)
    before = array.factors[base]
    for level, owned in zip(work.levels, work.owned, strict=True):
        step = tuple(f // b for f, b in zip(array.factors[level], before, strict=True))
        if max(step) > 1:
            block = mean_down(block, step) if not array.name else mode_down(block, step)
            before = array.factors[level]
        grid = tuple(o // b for o, b in zip(origin, _block_px(work), strict=True))
        spatial = tuple(
            slice(g * w, g * w + n) for g, w, n in zip(grid, owned, block.shape[-len(owned) :], strict=True)
        )
        lead = (slice(0, block.shape[0]),) if not array.name else ()
        write_box(array.levels[level], lead + spatial, block)
    if array.markers:
        write_bytes(join(array.markers, str(number), str(index)), b"")


def _block_px(work: Round) -> tuple[int, ...]:
    return work.blocks[0][1]


def _read_base(array: _Array, work: Round, origin: tuple[int, ...], size: tuple[int, ...]) -> Any:
    if work.base_level < 0:
        block = array.source.read(origin, size)
        return block if not array.name else check_labels(block, array.classes, array.name)
    info = array.levels[work.base_level]
    spatial = tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))
    return start_read(info, ((slice(0, info.shape[0]),) if not array.name else ()) + spatial)()


def remove_markers(url: str) -> None:
    remove(join(url, PARTIAL))
