"""Writing pyramids in one pass: each block of the source is read once and becomes all the levels that it wholly owns.

The blocks of a round are independent: here they are one dask graph that threads run, on a cluster whatever the caller
brings. Finished blocks of large arrays leave a marker; after a kill the same call goes on where it stopped, and the result is the same
to the bit. Memory is a few blocks, whatever the size of the slide.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dask.base import compute
from dask.delayed import delayed

from casebook.array_metadata import ArrayInfo, array_document
from casebook.arrays import create, forget_handles, start_read, write_box
from casebook.block_plan import Round, level_chunks, plan_rounds
from casebook.case import Case, Layer
from casebook.errors import CaseFormatError, CaseNotFoundError
from casebook.labels import IGNORE
from casebook.location import is_local, join, list_names, read_json, remove, write_bytes, write_json
from casebook.pyramid import level_shape, mean_down, mode_down
from casebook.source import LabelSource, check_labels

Progress = Callable[[int, int], None]
Task = tuple["PyramidJob", int, int]
Scheduler = str | Callable[[Callable[..., None], Sequence[Task], Callable[[], None]], None] | None
"""A name that dask knows ('threads', 'synchronous'), or `run(function, tasks, count)` that calls the function with every
task, somewhere, and `count` after each; None chooses by size."""
PARTIAL = ".partial"  # holds the markers while arrays are being written


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
class PyramidJob:
    """One pyramid to write: its levels and the rounds that write them."""

    name: str  # '' for the image, else the layer's id
    levels: tuple[ArrayInfo, ...]
    factors: tuple[tuple[int, ...], ...]
    rounds: tuple[Round, ...]
    documents: tuple[dict[str, Any], ...]
    source: Any
    classes: tuple[str, ...]
    markers: str | None  # where finished blocks are noted; None for small arrays


def plan_layer(
    url: str,
    layer: Layer,
    labels: LabelSource,
    classes: tuple[str, ...],
    factors: tuple[tuple[int, ...], ...],
    storage: Storage,
) -> PyramidJob:
    """The pyramid of one annotator's map."""
    chunk: tuple[int, ...] = storage.label_chunk_px if len(labels.shape) == 2 else storage.volume_label_chunk_px
    return plan_array(layer.id, url, labels, 0, "uint8", factors, chunk, storage, classes)


def case_factors(case: Case) -> tuple[tuple[int, ...], ...]:
    """Level-0 pixels per pixel of each level of a case that lies there."""
    return tuple(tuple(round(a / b) for a, b in zip(s, case.spacing_um[0], strict=True)) for s in case.spacing_um)


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
    span: int | None = None,
) -> PyramidJob:
    """The levels and rounds of one pyramid; channels 0 means a label map. span: chunks per side of a block, even."""
    shape = tuple(source.shape[1:] if channels else source.shape)
    lead = (channels,) if channels else ()
    names = (("c",) if channels else ()) + ("z", "y", "x")[-len(shape) :]
    shapes = tuple(level_shape(shape, factor) for factor in factors)
    chunks = level_chunks(shapes, chunk_px)
    span = span or (4 if len(shape) == 2 else 2)
    rounds = plan_rounds(shape, factors, chunk_px, tuple(c * span for c in chunk_px))
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
    return PyramidJob(
        name=name,
        levels=tuple(levels),
        factors=factors,
        rounds=rounds,
        documents=tuple(documents),
        source=source,
        classes=classes,
        markers=join(base, PARTIAL) if large else None,
    )


def write_arrays(place: str, arrays: list[PyramidJob], scheduler: Scheduler, progress: Progress | None) -> None:
    """Writes whole arrays under `place`, or goes on where an interrupted call with the same plan stopped."""
    _prepare(place, arrays)
    _run(arrays, scheduler, progress)
    for array in arrays:
        if array.markers:
            remove(array.markers)
    remove(join(place, PARTIAL))
    sweep(place)


def sweep(url: str) -> None:
    """Removes the unfinished files that a killed process left behind."""
    if is_local(url):
        for leftover in (*Path(url).rglob("*.__lock"), *Path(url).rglob("*.unfinished")):
            leftover.unlink(missing_ok=True)


def _prepare(url: str, arrays: list[PyramidJob]) -> None:
    """Creates the arrays, or finds them as an interrupted call with the same plan left them."""
    parts = [(a.documents, a.source.identity if a.markers else "") for a in arrays]
    plan = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
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


def create_arrays(array: PyramidJob) -> None:
    for info, document in zip(array.levels, array.documents, strict=True):
        create(info.url, document)


def _run(arrays: list[PyramidJob], scheduler: Scheduler, progress: Progress | None) -> None:
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


def _compute(tasks: list[Task], scheduler: Scheduler, progress: Progress | None, done: int, total: int) -> int:
    """Runs the blocks of one round, and counts them as they end."""
    steps = itertools.count(done + 1)

    def count(*_: Any) -> None:
        number = next(steps)
        if progress:
            progress(number, total)

    if callable(scheduler):
        scheduler(write_block, tasks, count)
    elif scheduler is None and len(tasks) <= 8:
        for task in tasks:
            write_block(*task)
            count()
    else:
        # the job inside the function and not an argument: dask would search it for graphs, once per block
        graph = [delayed(partial(write_block, job), pure=False, traverse=False)(*which) for job, *which in tasks]
        counted = [(None, None, None, count, None)]  # dask: start, start state, pretask, posttask, finish
        # given here and not as a context: that would count the blocks of cases written by other threads too
        compute(*graph, scheduler=scheduler or "threads", callbacks=counted)  # type: ignore[no-untyped-call]
    return done + len(tasks)


def write_block(array: PyramidJob, number: int, index: int) -> None:
    """Reads one block once and writes every level that it owns; then leaves its marker."""
    work = array.rounds[number]
    origin, size = work.blocks[index]
    write_levels(array, work, origin, _read_base(array, work, origin, size))
    if array.markers:
        write_bytes(join(array.markers, str(number), str(index)), b"")


def write_levels(array: PyramidJob, work: Round, origin: tuple[int, ...], block: Any) -> None:
    """Writes every level that one block owns. block: (C, *size) or (*size), at the round's base level."""
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


def _block_px(work: Round) -> tuple[int, ...]:
    return work.blocks[0][1]


def _read_base(array: PyramidJob, work: Round, origin: tuple[int, ...], size: tuple[int, ...]) -> Any:
    if work.base_level < 0:
        block = array.source.read(origin, size)
        return block if not array.name else check_labels(block, array.classes, array.name)
    info = array.levels[work.base_level]
    spatial = tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))
    return start_read(info, ((slice(0, info.shape[0]),) if not array.name else ()) + spatial)()
