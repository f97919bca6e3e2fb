"""How fast patches reach a training step, beside the physical limit and beside what others use. One table, ratios in one run.

    python jobs/bench_stream.py --quick             every row on a small slide and volume, about a minute
    python jobs/bench_stream.py --json rows.json    a gigapixel slide and a 512^3 volume; made once, kept in --folder

Rows from an object store need AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and --store s3://bucket/prefix.
Peers that are not installed are left out and named. Everything is measured with warm page cache, each row's two sides in turn.
"""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

import bench_stream_nodes as nodes
import bench_stream_scene as scene
import bench_stream_shuffle as shuffle
import bench_stream_sides as sides
from rayters.reports.rows import Row, rows_table, write_rows


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The stream's benchmark."""

    quick: bool = False  # a slide of 8192 px and a volume of 128 voxels a side, one round
    json: str | None = None  # write the table's rows to this file
    folder: str = ""  # where the generated cases lie; () a temporary folder of the system
    side: int = 32_768  # of the slide, in pixels; 32,768 is a gigapixel
    store: str | None = None  # s3://bucket/prefix of an object store
    rounds: int = 3
    rows: tuple[str, ...] = ("worker", "shuffle", "peers", "store", "memory", "nodes")  # groups of rows to measure


def main(bench: Bench) -> None:
    side, volume, rounds = (8192, 128, 1) if bench.quick else (bench.side, 512, bench.rounds)
    folder = Path(bench.folder or Path(tempfile.gettempdir()) / "rayters-bench-stream")
    slide, cube = scene.slide_cohort(folder, side), scene.volume_cohort(folder, volume)
    rows: list[Row] = []
    groups = {
        "worker": lambda: sides.worker_rows(slide, cube, rounds),
        "shuffle": lambda: shuffle.shuffle_rows(slide),
        "peers": lambda: sides.peer_rows(slide, cube, folder, rounds),
        "store": lambda: sides.store_rows(slide, folder, bench.store, rounds),
        "memory": lambda: sides.memory_rows(folder, slide, side),
        "nodes": lambda: nodes.node_rows(
            scene.slide_cohort(folder, 4096), seconds=0.2 if bench.quick else 1.0, reads=12 if bench.quick else 32
        ),
    }
    for name in bench.rows:
        found = groups[name]()
        print(rows_table(found), flush=True)
        rows += found
    print("\n" + rows_table(rows))
    if bench.json:
        write_rows(rows, bench.json)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(tyro.cli(Bench, description=__doc__))
