"""The stream on Ray Data: read tasks on the cluster, batches in the training worker. The one file that imports ray.data.

    driver      open_stream(...) --> Dataset --> TorchTrainer(datasets={"train": ds}, dataset_config=StreamConfig())
                                                   |  at every start of a worker group, also after a failure
    StreamConfig.configure       one Dataset for each rank, in a streaming_split of its own
                                                   |
    worker      stream_batches(shard, epoch=3, first_batch=17)
                   1. posts (epoch, first batch, batch size) for its rank on the Board, a small actor
                   2. iterates its shard; Ray asks the Datasource for the tasks of the new execution
    Datasource     3. reads the post, computes the plan, and returns one task for each block that is still to be read

So the *worker's* epoch decides, the one that it restored from its checkpoint; Ray's own count of executions starts at zero after
a restart and plays no part. The worker computes the same plan and holds each block against it, so a stream that is out of step
ends with an error and not with other patches.

Why a split for each rank, and not one split over all: Ray hands blocks to whoever has the fewest rows, which for blocks of
unequal size is nobody's plan; and one coordinator is a bottleneck for many workers. Why a fixed share at all: only then do two
integers, epoch and batch, say exactly what has been seen.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import ray
from ray.data import DataContext, DataIterator, Dataset, ExecutionOptions
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.data.extensions import ArrowTensorArray
from ray.train import DataConfig
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from casebook import Cohort
from rayters.patches.batches import Arrived, batches, own_batches
from rayters.patches.cache import Cache
from rayters.patches.memory import refuse_if_over, stream_memory
from rayters.patches.plan import BlockTask, plan_epoch
from rayters.patches.read import Block, read_block
from rayters.patches.resume import Leg, rest_of
from rayters.patches.sampling import Sampling
from rayters.patches.share import Share
from rayters.patches.view import Request

BOARD = "rayters-stream-board"
CPUS_PER_READ = 0.5
PLACE = "rayters.stream"  # key of a Dataset's context under which its Place lies


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that the patches of a stream depend on, the epoch excepted."""

    cohort: Cohort
    request: Request
    sampling: Sampling
    seed: int
    cache: Cache | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which share of which stream a Dataset is; small, for it travels with every read task."""

    stream: str
    rank: int = 0
    world: int = 1
    cpus_per_read: float = CPUS_PER_READ
    locality: Literal["node", "spread"] = "node"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a worker is about to iterate."""

    epoch: int
    first_batch: int
    batch_size: int
    done: tuple[Leg, ...]


class Board:
    """Where the workers tell the Datasource which epoch comes next. An actor, one for each driver; it forgets nothing it needs:
    sources are kept by the driver's object store, wishes are posted anew before every epoch."""

    def __init__(self) -> None:
        self.sources: dict[str, ray.ObjectRef[Source]] = {}
        self.wishes: dict[tuple[str, int], Wish] = {}

    def add(self, stream: str, source: "list[ray.ObjectRef[Source]]") -> None:
        self.sources[stream] = source[0]

    def source(self, stream: str) -> "list[ray.ObjectRef[Source]]":
        return [self.sources[stream]]

    def post(self, place: Place, wish: Wish) -> None:
        self.wishes[place.stream, place.rank] = wish

    def wish(self, place: Place) -> Wish | None:
        return self.wishes.get((place.stream, place.rank))


_boards: list[Any] = []  # the first handle on a named actor keeps it alive: none is ever dropped


def board() -> Any:
    """The driver's, which lies on the driver's own machine: another may be lost while a training goes on."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(name=BOARD, get_if_exists=True, num_cpus=0, scheduling_strategy=here).remote()


_sources: dict[str, Source] = {}  # this process's copy of each stream's source


def source_of(place: Place) -> Source:
    if place.stream not in _sources:
        _sources[place.stream] = ray.get(ray.get(board().source.remote(place.stream))[0])
    return _sources[place.stream]


def open_stream(
    cohort: Cohort,
    request: Request,
    sampling: Sampling,
    *,
    seed: int,
    cpus_per_read: float = CPUS_PER_READ,
    locality: Literal["node", "spread"] = "node",
    cache: Cache | None = None,
) -> Dataset:
    """A Dataset of patches for ``TorchTrainer(datasets={"train": ...}, dataset_config=StreamConfig())``.

    cpus_per_read: CPUs that a read task reserves; workers and reads share the cluster, so leave some: on 2 CPUs, two workers of
        0.5 and reads of 0.5 run side by side. locality: read on the node of the worker that consumes, or anywhere.
    """
    plan_epoch(cohort, request, sampling, seed=seed, epoch=0)  # what cannot be planned is refused here, not in a worker
    place = Place(stream=uuid4().hex, cpus_per_read=cpus_per_read, locality=locality)
    handle = board()
    _boards.append(handle)
    source = Source(cohort=cohort, request=request, sampling=sampling, seed=seed, cache=cache)
    ray.get(handle.add.remote(place.stream, [ray.put(source)]))
    return dataset_for(place, node=None)


def dataset_for(place: Place, node: str | None) -> Dataset:
    """The Dataset of one rank: ordered, one block for each task, read on ``node`` if there is a choice."""
    source = source_of(place)
    memory = stream_memory(source.cohort, source.request, source.sampling, batch_size=1)
    available = int(ray.cluster_resources().get("object_store_memory", 0))  # type: ignore[no-untyped-call]
    refuse_if_over(place.world * memory.store, available, "Ray's object store", source.sampling)
    with _reading_on(node if place.locality == "node" else None):
        ds: Dataset = ray.data.read_datasource(
            PatchSource(place, memory.patch, estimated_patches(source) // place.world),
            num_cpus=place.cpus_per_read,
            override_num_blocks=1,  # the plan knows how many; without this, Ray splits blocks up
        )
    ds.context.set_config(PLACE, place)
    ds.context.target_max_block_size = None  # one task, one block: the worker counts on it
    ds.context.enable_progress_bars = False
    return ds


@contextmanager
def _reading_on(node: str | None) -> Iterator[None]:
    """Datasets made in the block prefer a node. Ray 2.60 calls both ways of saying so deprecated, and has no third."""
    context = DataContext.get_current()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        usual = context.scheduling_strategy
        if node is not None:
            # soft alone waits for ever where workers have taken all CPUs of the node
            context.scheduling_strategy = NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)
        try:
            yield
        finally:
            context.scheduling_strategy = usual


class StreamConfig(DataConfig):
    """Gives every worker the Dataset of its own rank. Datasets that are no patch streams are split as usual."""

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: list[Any] | None,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        ours = {name: ds for name, ds in datasets.items() if ds.context.get_config(PLACE) is not None}
        others = {name: ds for name, ds in datasets.items() if name not in ours}
        shards = super().configure(others, world_size, worker_handles, worker_node_ids, **kwargs)
        nodes: list[str | None] = [*worker_node_ids] if worker_node_ids else [None] * world_size
        for name, ds in ours.items():
            for rank, node in enumerate(nodes):
                place = replace(ds.context.get_config(PLACE), rank=rank, world=world_size)
                shards[rank][name] = rank_shard(dataset_for(place, node), self._resolve_execution_options(name))
        return shards


def rank_shard(ds: Dataset, options: ExecutionOptions) -> DataIterator:
    options.preserve_order = True  # batches are a function of the order; measured, it costs nothing
    ds.context.execution_options = options
    return ds.streaming_split(1, equal=False)[0]


def stream_batches(
    shard: DataIterator | Dataset,
    *,
    batch_size: int,
    epoch: int,
    first_batch: int = 0,
    done: Sequence[Leg] = (),
    threads: int = 0,
    prefetch_blocks: int = 2,
) -> Iterator[Block]:
    """The batches of this worker's share of an epoch, from ``first_batch`` on; the same as local_batches gives.

    shard: train.get_dataset_shard(...), or without a trainer what open_stream returned.
    done: legs of the epoch that were run by another number of workers, see resume.Leg.
    threads: 0 reads in tasks on the cluster. More: the worker reads for itself in so many threads and leaves the object store out,
        which is faster where the worker's own node has cores to spare: twice as many as those (docs/results/stream.md).
    """
    if isinstance(shard, Dataset):
        shard = rank_shard(shard, ExecutionOptions())
    place = shard.get_context().get_config(PLACE)
    wish = Wish(epoch=epoch, first_batch=first_batch, batch_size=batch_size, done=tuple(done))
    share, source = share_of(place, wish), source_of(place)
    if threads:
        yield from own_batches(
            share,
            source.request,
            source.sampling.border,
            first_batch=first_batch,
            threads=threads,
            cache=source.cache,
        )
        return
    ray.get(board().post.remote(place, wish))
    # None means whole blocks; Ray's annotation does not know
    blocks = shard.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=prefetch_blocks)  # type: ignore[arg-type]
    yield from batches(share, (Arrived(columns=block) for block in blocks), first_batch)


def share_of(place: Place, wish: Wish) -> Share:
    """What the worker and the Datasource both compute, each for itself."""
    source = source_of(place)
    plan = plan_epoch(source.cohort, source.request, source.sampling, seed=source.seed, epoch=wish.epoch)
    return Share(plan=rest_of(plan, wish.done), rank=place.rank, world=place.world, batch_size=wish.batch_size)


class PatchSource(Datasource):
    """Patches as a Ray Datasource: one read task for each block of the plan of the epoch that the worker asked for."""

    def __init__(self, place: Place, bytes_per_patch: int, patches: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place = place
        self.bytes_per_patch = bytes_per_patch
        self.patches = patches

    def estimate_inmemory_data_size(self) -> int:
        return self.patches * self.bytes_per_patch

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        if data_context is None:  # Ray only wants to know how much it will be
            return [ReadTask(nothing, metadata(self.patches, self.bytes_per_patch))]
        wish = ray.get(board().wish.remote(self.place))
        if wish is None:
            raise RuntimeError(
                "nobody said which epoch to read: iterate a patch stream with stream_batches(shard, epoch=...)"
            )
        source, share = source_of(self.place), share_of(self.place, wish)
        return [
            read_task(task, source, self.bytes_per_patch)
            for group in share.groups(wish.first_batch)
            for task in group.tasks
        ]


def read_task(task: BlockTask, source: Source, bytes_per_patch: int) -> ReadTask:
    request, border, cache = source.request, source.sampling.border, source.cache  # not the cohort: it stays here

    def read() -> list[pa.Table]:
        return [table(read_block(task, request, border, cache))]

    return ReadTask(read, metadata(len(task), bytes_per_patch))


def metadata(patches: int, bytes_per_patch: int) -> BlockMetadata:
    return BlockMetadata(num_rows=patches, size_bytes=patches * bytes_per_patch, exec_stats=None, input_files=None)


def nothing() -> list[pa.Table]:
    return []


def table(block: Block) -> pa.Table:
    """The block as Arrow tensors: the arrays are wrapped, not copied."""
    columns = {
        k: ArrowTensorArray.from_numpy(np.ascontiguousarray(v)) if v.ndim > 1 else pa.array(v) for k, v in block.items()
    }
    return pa.table(columns)


def estimated_patches(source: Source) -> int:
    """Patches of an epoch: exact where a number was asked for, else the area over the target's field of view."""
    if source.sampling.patches_per_epoch is not None:
        return source.sampling.patches_per_epoch
    field = source.request.target.field_of_view_px0
    return sum(prod(-(-n // f) for n, f in zip(row.shape, field, strict=True)) for row in source.cohort.cases)
