"""The two sides of each row of bench_stream.py."""

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from casebook import Cohort, open_case
from rayters.patches.batches import local_batches
from rayters.patches.cache import Cache
from rayters.patches.memory import stream_memory
from rayters.patches.sampling import Sampling
from rayters.patches.view import Request, View
from rayters.reports.rows import Row

BATCH = 32
ONCE = Sampling()
MANY_BLOCKS = Sampling(block_px=512)  # so that even the small slide has more blocks than are held at a time
Rate = Callable[[], float]


def request(size: int, axes: int = 2, scales: tuple[int, ...] = (1,), annotators: tuple[str, ...] = ()) -> Request:
    views = tuple(View(size_px=(size,) * axes, field_of_view_px0=(size * s,) * axes) for s in scales)
    return Request(views=views, target=views[0], annotators=annotators)


def jittered(cohort: Cohort, size: int, per_block: int) -> Sampling:
    """As many patches as cover the cohort once."""
    pixels = sum(prod(row.shape) for row in cohort.cases)
    return Sampling(
        patches_per_epoch=max(2 * per_block, pixels // size ** len(cohort.cases[0].shape)), patches_per_block=per_block
    )


def in_turn(rounds: int, measured: Mapping[str, Rate]) -> dict[str, float]:
    """The median of each, measured in turn in every round, so that a busy minute hits all of them."""
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, rate in measured.items():
            gc.collect()
            found[name].append(rate())
    return {name: statistics.median(values) for name, values in found.items()}


def tensors_per_second(batches: Iterable[Mapping[str, Any]], most: int = 1 << 62) -> float:
    """Patches per second that have become torch tensors, the first batch's start-up included."""
    start, patches = time.perf_counter(), 0
    for batch in batches:
        patches += len(torch.from_numpy(batch["views"]))
        torch.from_numpy(batch["labels"])
        if patches >= most:
            break
    return patches / (time.perf_counter() - start)


# ------------------------------------------------------------------------------------------------ in a Ray Train worker


def worker_rows(slide: Cohort, cube: Cohort, rounds: int) -> list[Row]:
    """Every stream in one Ray Train worker, in turn with the raw decode in the same process."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from rayters.training.stream import StreamConfig, open_stream

    ray.init(
        address="local", include_dashboard=False, num_cpus=3, log_to_driver=False, runtime_env={"env_vars": sources()}
    )
    streams = {
        "once": (slide, request(256), ONCE),
        "jittered": (slide, request(256), jittered(slide, 256, 64)),
        "drawn": (slide, request(256, annotators=slide.annotators), ONCE),
        "three": (slide, request(256, scales=(1, 2, 4)), ONCE),
        "wide": (slide, request(256, scales=(1, 2, 4)), Sampling(block_px=4096, mix_blocks=2)),
        "volume": (cube, request(64, axes=3), jittered(cube, 64, 48)),
    }
    folder = Path(slide.url.removeprefix("file://"))
    found = folder / "worker.json"
    trainer = TorchTrainer(
        _measure,
        train_loop_config={"rounds": rounds, "found": str(found), "case": slide.cases[0].url},
        datasets={name: open_stream(*what, seed=0, cpus_per_read=1) for name, what in streams.items()},
        dataset_config=StreamConfig(),
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=f"bench-{time.time_ns()}", storage_path=str(folder)),
    )
    trainer.fit()
    ray.shutdown()
    rate = json.loads(found.read_text())
    per_patch = 3 * 256 * 256 / 1e6  # MB
    return [
        Row(row=ONCE_ROW, value=rate["once own"] * per_patch, reference=rate["raw"], unit="MB/s", goal=">= 0.90"),
        Row(row=f"{TASKS} / raw decode", value=rate["once tasks"] * per_patch, reference=rate["raw"], unit="MB/s"),
        _pair("  jittered patches, own threads / read tasks", rate, "jittered own", "jittered tasks"),
        _pair("four annotators' layers added / image alone", rate, "drawn own", "once own", ">= 0.8"),
        _pair(TASKS, rate, "drawn tasks", "once tasks"),
        _pair("three views (1x, 2x, 4x field of view) / one view", rate, "three own", "once own", ">= 0.6"),
        _pair("  the same, fewer and larger blocks (4096 px, mixed by 2)", rate, "wide own", "once own", ">= 0.6"),
        _pair(TASKS, rate, "three tasks", "once tasks"),
        _pair("  64^3 patches of the volume, own threads / read tasks", rate, "volume own", "volume tasks"),
    ]


ONCE_ROW = (
    "every pixel once, 256 px patches, into torch tensors in a Ray Train worker / "
    "raw multi-thread decode of every chunk"
)
PEERS_ROW = (
    "jittered random patches / the best of MONAI PatchWSIDataset (openslide, cucim where it installs), "
    "TorchIO Queue (volumes), torch DataLoader + zarr-python with 2 workers"
)
TASKS = "  the same through read tasks and the object store"


def _pair(row: str, rate: Mapping[str, float], ours: str, other: str, goal: str = "") -> Row:
    return Row(row=row, value=rate[ours], reference=rate.get(other), unit="patches/s", goal=goal)


def sources() -> dict[str, str]:
    root = Path(__file__).resolve().parents[1]
    return {"PYTHONPATH": os.pathsep.join([str(root / "platform"), str(root / "storage"), str(root / "jobs")])}


def _measure(config: Mapping[str, Any]) -> None:
    """Runs in the worker."""
    from ray import train

    from rayters.networks.allocator import keep_freed_memory
    from rayters.training.stream import stream_batches

    keep_freed_memory()  # as in every worker that has built its net; the raw decode gains by it as well
    epochs = iter(range(1_000_000))
    cores = max(2, len(os.sched_getaffinity(0)))

    def stream(name: str, own: int) -> Rate:
        shard = train.get_dataset_shard(name)
        return lambda: tensors_per_second(stream_batches(shard, batch_size=BATCH, epoch=next(epochs), threads=own))

    names = ("once", "jittered", "drawn", "three", "wide", "volume")
    measured: dict[str, Rate] = {"raw": lambda: raw_decode(config["case"], cores)}
    for name in names:
        measured |= {f"{name} own": stream(name, 2 * cores), f"{name} tasks": stream(name, 0)}
    for name in ("raw", "once own", "once tasks"):
        measured[name]()  # libraries load, read tasks start their processes
    Path(config["found"]).write_text(json.dumps(in_turn(config["rounds"], measured)))


def raw_decode(case_url: str, threads: int) -> float:
    """MB/s of reading every stored chunk of level 0 and decoding it, in threads, and nothing else: the physical limit."""
    from numcodecs.zstd import Zstd

    info = open_case(case_url).stored.levels[0]
    files = [
        path for path in Path(info.url.removeprefix("file://")).rglob("*") if path.is_file() and path.suffix != ".json"
    ]
    pieces = [piece for path in files for piece in _frames(path, info)]
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        decoded = sum(pool.map(lambda piece: len(Zstd().decode(_read(*piece))), pieces))
    return decoded / 1e6 / (time.perf_counter() - start)


def _frames(path: Path, info: Any) -> Iterator[tuple[Path, int, int]]:
    """(file, offset, bytes) of each chunk; a shard ends with its index of (offset, bytes) and a checksum."""
    size = path.stat().st_size
    if info.shard == info.chunk:
        yield path, 0, size
        return
    number = prod(s // c for s, c in zip(info.shard, info.chunk, strict=True))
    index = np.frombuffer(_read(path, size - 16 * number - 4, 16 * number), dtype="<u8").reshape(-1, 2)
    yield from ((path, int(offset), int(length)) for offset, length in index if length != 2**64 - 1)


def _read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


# ------------------------------------------------------------------------------------------------ peers, in this process


def peer_rows(slide: Cohort, cube: Cohort, folder: Path, rounds: int) -> list[Row]:
    import bench_stream_peers as peers

    most = 1024
    ours = {
        "ours": lambda: tensors_per_second(_local(slide, 256, 64), 4 * most),
        "ours volume": lambda: tensors_per_second(_local(cube, 64, 48), most),
    }
    rate = in_turn(rounds, ours | peers.slide_peers(slide, folder, most) | peers.volume_peers(cube, folder, most // 4))
    slides = {name: value for name, value in rate.items() if name.startswith("slide: ")}
    volumes = {name: value for name, value in rate.items() if name.startswith("volume: ")}
    best, best_volume = max(slides, key=slides.__getitem__), max(volumes, key=volumes.__getitem__, default="")
    rows = [_pair(PEERS_ROW, rate, "ours", best, ">= 3")]
    rows += [_pair(f"  jittered random patches / {name}", rate, "ours", name) for name in slides]
    rows.append(
        _pair(
            "64^3 patches of a volume / nnU-Net's blosc2 way",
            rate,
            "ours volume",
            "volume: nnU-Net's blosc2 way",
            ">= 1.5",
        )
    )
    rows += [_pair(f"  64^3 patches / {name}", rate, "ours volume", name) for name in volumes]
    print(f"best peer: {best}; {best_volume}; not installed: {peers.absent()}", flush=True)
    return rows


def _local(cohort: Cohort, size: int, per_block: int, cache: Cache | None = None) -> Iterator[Mapping[str, Any]]:
    what, sampling = request(size, axes=len(cohort.cases[0].shape)), jittered(cohort, size, per_block)
    return local_batches(cohort, what, sampling, batch_size=BATCH, seed=0, epoch=0, threads=4, cache=cache)


# ------------------------------------------------------------------------------------------------ object store


def store_rows(slide: Cohort, folder: Path, store: str | None, rounds: int) -> list[Row]:
    """The slide's table points to a copy in the store; the copy is made once."""
    name = "from the real object store / from local disk"
    if store is None:
        return [Row(row=name, value=float("nan"), unit="patches/s", goal=">= 0.5, and >= 2 x s3fs + zarr-python")]
    import bench_stream_peers as peers

    url = peers.copy_to(store, slide.cases[0].url)
    there = replace(slide, cases=(replace(slide.cases[0], url=url),))
    most = 2048
    cache = Cache(folder=str(folder / "cache"), max_bytes=2**33)
    tensors_per_second(_local(there, 256, 64, cache), most)  # an epoch that fills it
    rate = in_turn(rounds, {
        "there": lambda: tensors_per_second(_local(there, 256, 64), most),
        "again": lambda: tensors_per_second(_local(there, 256, 64, cache), most),
        "here": lambda: tensors_per_second(_local(slide, 256, 64), most),
        "s3fs": lambda: peers.zarr_patches(url, most // 8),
    })  # fmt: skip
    return [
        _pair(name, rate, "there", "here", ">= 0.5"),
        _pair("  from the real object store / s3fs + zarr-python", rate, "there", "s3fs", ">= 2"),
        _pair("  from the real object store a second time, through the cache / from local disk", rate, "again", "here"),
    ]


# ------------------------------------------------------------------------------------------------ memory


def memory_rows(folder: Path, slide: Cohort, side: int) -> list[Row]:
    """Peak resident bytes of a process that streams, each in a process of its own."""
    import bench_stream_scene as scene

    small_side = max(2048, int(side / 10**0.5) // 2048 * 2048)
    small = scene.slide_cohort(folder, small_side)
    small_peak, large_peak = _peak(small.url), _peak(slide.url)
    what = request(256, annotators=slide.annotators)
    predicted = stream_memory(slide, what, MANY_BLOCKS, batch_size=BATCH, threads=2).worker_reading
    area = (slide.cases[0].shape[0] / small_side) ** 2
    pairs = [
        ("peak memory at 10x the slide area / at 1x", large_peak["peak"], small_peak["peak"], "<= 1.1"),
        (
            f"  the areas differ by {area:.1f}; of the stream alone: measured / predicted",
            large_peak["stream"],
            predicted,
            "<= 1",
        ),
    ]
    return [
        Row(row=row, value=value / 2**20, reference=reference / 2**20, unit="MiB", goal=goal)
        for row, value, reference, goal in pairs
    ]


def _peak(cohort_url: str) -> dict[str, int]:
    code = "import bench_stream_sides as s, sys, json; print(json.dumps(s.streamed_peak(sys.argv[1])))"
    out = subprocess.run(
        [sys.executable, "-c", code, cohort_url], env=os.environ | sources(), check=True, capture_output=True, text=True
    )
    found: dict[str, int] = json.loads(out.stdout.splitlines()[-1])
    return found


def streamed_peak(cohort_url: str) -> dict[str, int]:
    """Peak resident bytes over a fixed number of patches, and by how much they exceed what was there before."""
    from casebook import open_cohort

    cohort = open_cohort(cohort_url)
    what = request(256, annotators=cohort.annotators)
    before = _status("VmRSS")
    batches = local_batches(cohort, what, MANY_BLOCKS, batch_size=BATCH, seed=0, epoch=0, threads=2)
    tensors_per_second(batches, 4096)
    peak = _status("VmHWM")
    return {"peak": peak, "stream": peak - before}


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
