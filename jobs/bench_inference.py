"""How fast whole slides and volumes are predicted, from Zarr to Zarr, beside MONAI's sliding_window_inference. One table, ratios in one run.

    python jobs/bench_inference.py --quick              every row on small cases, under a minute
    python jobs/bench_inference.py --json rows.json     4096 px slides and 256-voxel volumes, three rounds, each side in turn

Both sides run the same net on the same tiles with the same overlap and batch, in one process on all cores: theirs with as many threads of
torch, ours with as many blocks at once. Theirs reads the array, predicts it, and writes posterior and labels at full resolution; ours
writes their pyramids and the uncertainty too, block by block.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

import bench_inference_sides as sides
import bench_stream_scene as scene
from rayters.reports.rows import Row, rows_table, write_rows

LIGHT, HEAVY = 2, 16  # features of the U-Net at full resolution


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The benchmark of inference."""

    quick: bool = False
    json: str | None = None
    folder: str = ""  # where cases and nets lie; none: a temporary folder of the system
    side: int = 4096  # of the slide, pixels
    volume: int = 256  # side of the volume, voxels
    rounds: int = 3
    rows: tuple[str, ...] = ("slide", "volume", "memory", "nodes")
    job: str | None = None  # one side of one row, in a process of its own; for this job's own use


def main(bench: Bench) -> None:
    """Measures the groups of rows, prints after each."""
    if bench.job:
        print(json.dumps(sides.run(json.loads(bench.job))))
        return
    folder = Path(bench.folder or Path(tempfile.gettempdir()) / "rayters-bench-inference")
    side, volume, rounds = (1024, 96, 1) if bench.quick else (bench.side, bench.volume, bench.rounds)
    groups = {
        "slide": lambda: speed(folder, "slide", scene.slide_cohort(folder, side).url, (256, 256), rounds),
        "volume": lambda: speed(folder, "volume", scene.volume_cohort(folder, volume).url, (32, 64, 64), rounds),
        "memory": lambda: memory(folder, 1024 if bench.quick else 2048),
        "nodes": lambda: nodes(folder, quick=bench.quick),
    }
    rows: list[Row] = []
    for name in bench.rows:
        found = groups[name]()
        print(rows_table(found), flush=True)
        rows += found
    print("\n" + rows_table(rows))
    if bench.json:
        write_rows(rows, bench.json)


def side_of(**job: object) -> dict[str, float]:
    """One side in a fresh process: nobody's caches, threads or memory are in the other's way."""
    shutil.rmtree(str(job["out"]), ignore_errors=True)
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a side of the benchmark failed: {done.stderr[-800:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def speed(folder: Path, what: str, cohort: str, patch: Sequence[int], rounds: int) -> list[Row]:
    """Pixels per second of both sides, for a net beside which IO counts, and for one that dominates."""
    unit, rows = ("megapixels/s" if what == "slide" else "megavoxels/s"), []
    for width, name, goal in ((LIGHT, "light net, IO counts", ">= 1.5"), (HEAVY, "the net dominates", ">= 1.0")):
        model = sides.untrained(folder / f"net-{what}-{width}", cohort, tuple(patch), width)
        times: dict[str, list[float]] = {"ours": [], "monai": []}
        for _ in range(rounds):
            for who in times:
                found = side_of(who=who, cohort=cohort, model=model, out=str(folder / "out"))
                times[who].append(found["pixels"] / 1e6 / found["figure"])
        rows.append(
            Row(
                row=f"{what}, Zarr to Zarr / MONAI sliding_window_inference, {name}",
                value=max(times["ours"]),
                reference=max(times["monai"]),
                unit=unit,
                goal=goal,
            )
        )
    return rows


def memory(folder: Path, side: int) -> list[Row]:
    """Peak memory of one process over slides of one and of ten times the area."""
    model = None
    peaks = []
    for longer in (side, round(side * 10**0.5 / 512) * 512):
        cohort = scene.slide_cohort(folder, longer).url
        model = model or sides.untrained(folder / f"net-slide-{LIGHT}", cohort, (256, 256), LIGHT)
        found = side_of(who="ours", cohort=cohort, model=model, out=str(folder / "out"), block_mib=64, workers=1)
        peaks.append(found["peak_mib"])
    return [
        Row(row="peak memory, ten times the area / once", value=peaks[1], reference=peaks[0], unit="MiB", goal="<= 1.1")
    ]


def nodes(folder: Path, *, quick: bool) -> list[Row]:
    """Nodes of one CPU each; every batch of tiles sleeps, so that nodes and not this machine's cores decide."""
    cohort = scene.slide_cohort(folder, 2048 if quick else 4096).url
    model = sides.untrained(folder / f"net-slide-{LIGHT}", cohort, (256, 256), LIGHT)
    rates = {}
    for number in (1, 2) if quick else (1, 2, 4):
        found = side_of(
            who="nodes", cohort=cohort, model=model, out=str(folder / "out"), nodes=number, sleep=0.2 if quick else 0.6
        )
        rates[number] = found["figure"] / number
    return [
        Row(
            row=f"{number} simulated nodes (cluster_utils, the net sleeps so that cores do not decide)",
            value=rate,
            reference=rates[1],
            unit="batches/s and node",
            goal=">= 0.9 efficiency",
        )
        for number, rate in rates.items()
    ]


if __name__ == "__main__":
    began = time.perf_counter()
    arguments = tyro.cli(Bench, description=__doc__)
    main(arguments)
    if not arguments.job:
        print(f"\n{time.perf_counter() - began:.0f} s")
