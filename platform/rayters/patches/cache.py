"""Objects of a store, kept on the local disk: bounded, shared by all processes of a node, off unless a folder is given.

    s3://bucket/case/0/c/0/17/4  -->  folder/<hash of the case>/0/c/0/17/4      the stored bytes, still compressed

It pays where an epoch is read several times from a store that is slower than the disk; on local disks it only copies. Blocks that
are read ahead fetch their objects ahead, all at once, so the cache prefetches as far as the reader does.

Safe with several processes: an object appears whole (written beside, then renamed), two that fetch the same one write the same
bytes, and nobody evicts what another is reading: readers share a lock on the folder, and who makes room must have it alone.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from casebook import Case, CaseNotFoundError
from casebook.array_metadata import ArrayInfo, chunk_url
from casebook.location import read_bytes

FETCHES = 16  # objects asked for at once; an object store answers many requests as fast as one
SLACK = 0.1  # of max_bytes, by which the cache is emptied below its bound, so that not every read has to make room


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of at most ``max_bytes``; objects that were used least recently go first."""

    folder: str
    max_bytes: int

    def case(self, case: Case) -> "CachedCase":
        return CachedCase(case, self)

    @contextmanager
    def lock(self, kind: int) -> Iterator[None]:
        """fcntl.LOCK_SH to read, fcntl.LOCK_EX to evict; on a descriptor of its own, so threads exclude each other as processes do."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        with (Path(self.folder) / "lock").open("w") as file:
            fcntl.flock(file, kind)
            yield

    def fetch(self, url: str, path: Path) -> int:
        """Bytes newly stored at ``path``; an object that the store has not, is not here either (a chunk of background)."""
        if path.exists():
            os.utime(path)
            return 0
        try:
            data = read_bytes(url)
        except CaseNotFoundError:
            return 0
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{uuid4().hex}.part")
        draft.write_bytes(data)
        draft.replace(path)
        return len(data)

    def make_room(self) -> None:
        """Remove what was used longest ago, until a tenth below the bound."""
        files = [
            p for p in Path(self.folder).rglob("*") if p.is_file() and p.name not in ("lock", "zarr.json", ".zarray")
        ]
        known = sorted((p.stat().st_mtime_ns, p.stat().st_size, p) for p in files)
        total = sum(size for _, size, _ in known)
        if total <= self.max_bytes:
            return
        for _, size, path in known:
            if total <= self.max_bytes * (1 - SLACK):
                return
            path.unlink(missing_ok=True)
            total -= size


class CachedCase:
    """Reads as a Case does, from the cache, after fetching what is not in it."""

    def __init__(self, case: Case, cache: Cache) -> None:
        self.remote, self.cache = case, cache
        self.home = Path(cache.folder) / hashlib.sha256(case.url.encode()).hexdigest()[:16]
        self.name, self.shapes, self.channels = case.name, case.shapes, case.channels
        self.dtype, self.layers = case.dtype, case.layers

    @cached_property
    def local(self) -> Case:
        """The same case with its arrays under the cache's folder; their metadata is fetched at once."""
        stored = self.remote.stored
        for info in (*stored.levels, *(level for layer in stored.label_levels for level in layer)):
            name = "zarr.json" if info.zarr_format == 3 else ".zarray"
            self.cache.fetch(f"{info.url}/{name}", self.path_of(f"{info.url}/{name}"))
        levels = tuple(self.moved(info) for info in stored.levels)
        labels = tuple(tuple(self.moved(info) for info in layer) for layer in stored.label_levels)
        return replace(self.remote, stored=replace(stored, levels=levels, label_levels=labels))

    def path_of(self, url: str) -> Path:
        return self.home / url.removeprefix(self.remote.url).lstrip("/")

    def moved(self, info: ArrayInfo) -> ArrayInfo:
        return replace(info, url=str(self.path_of(info.url)))

    def read_image(self, level: int, origin: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
        """As Case.read_image."""
        objects = self.objects(self.remote.stored.levels[level], self.remote.stored.axes, origin, size)
        with self.holding(objects):
            return self.local.read_image(level, origin, size)

    def read_labels(
        self, layer_ids: Sequence[str], level: int, origin: Sequence[int], size: Sequence[int]
    ) -> NDArray[np.uint8]:
        """As Case.read_labels."""
        stored, objects = self.remote.stored, []
        for number, layer in enumerate(self.layers):
            if layer.id in layer_ids:
                objects += self.objects(stored.label_levels[number][level], stored.label_axes[number], origin, size)
        with self.holding(objects):
            return self.local.read_labels(layer_ids, level, origin, size)

    def objects(self, info: ArrayInfo, axes: tuple[str, ...], origin: Sequence[int], size: Sequence[int]) -> list[str]:
        """URLs of the stored objects that a box touches."""
        box = dict(zip(self.remote.axes, zip(origin, size, strict=True), strict=True))
        spans = []
        for axis, extent, shard in zip(axes, info.shape, info.shard, strict=True):
            first, number = box.get(axis, (0, extent))
            spans.append(range(first // shard, -(-(first + number) // shard)))
        return [chunk_url(info, index) for index in product(*spans)]

    @contextmanager
    def holding(self, urls: list[str]) -> Iterator[None]:
        """Fetch the objects, and keep them from being evicted until they were read."""
        with self.cache.lock(fcntl.LOCK_SH):
            fetched = sum(_pool(os.getpid()).map(lambda url: self.cache.fetch(url, self.path_of(url)), urls))
            assert self.local is not None  # metadata in place
            yield
        if fetched:
            with self.cache.lock(fcntl.LOCK_EX):
                self.cache.make_room()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """One for each process: a forked child must not wait for threads that it does not have."""
    return ThreadPoolExecutor(FETCHES, thread_name_prefix="rayters-fetch")
