"""How fast cases are written and read, beside what others do with the same slide.

    python jobs/bench_storage.py               a procedural slide of 12,288 pixels a side, five minutes
    python jobs/bench_storage.py --quick       2,048 pixels a side, the same rows, under a minute
    AWS_ENDPOINT_URL=... python jobs/bench_storage.py --bucket s3://lab/bench      the object-store rows too

Every pair is measured in turns, three rounds, and the median counts, so that a busy machine disturbs both alike. Read the ratios.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import tifffile
import tyro
import zarr
from numcodecs import Zstd

from casebook import Case, write_case
from casebook.arrays import forget_handles
from casebook.formats import open_image
from casebook.formats import tiff as tiff_format
from casebook.location import remove
from casebook.procedural import ProceduralSlide
from casebook.table import table

ROUNDS = 3
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """How fast cases are written and read, beside what others do with the same slide."""

    quick: bool = False
    """A small slide and few reads; under a minute."""
    bucket: str | None = None
    """s3://bucket/prefix for the object-store rows; the AWS_* variables say where and who."""
    json: Path | None = None
    """Write the table to this file."""


def main(job: Job) -> int:
    warnings.simplefilter("ignore")
    side, reads = (2048, 40) if job.quick else (12_288, 300)
    folder = Path(tempfile.mkdtemp(prefix="bench-storage-"))
    try:
        rows = bench(folder, side, reads, job.bucket)
    finally:
        shutil.rmtree(folder)
    shown = [(r["row"], r["value"], r["reference"], r["ratio"], r["unit"], r["goal"] or "") for r in rows]
    print(table(("row", "ours", "theirs", "ratio", "unit", "goal (ratio)"), shown))
    if job.json:
        job.json.write_text(json.dumps(rows, indent=2))
    return 0


def bench(folder: Path, side: int, reads: int, bucket: str | None) -> list[Row]:
    slide = make_tiff(folder / "slide.tif", side)
    rows = [ingest_row(folder, slide, side)]
    case = write_case(
        folder / "ours.ome.zarr", open_image(str(slide)).pixels, spacing_um=(0.5, 0.5), classes=("a", "b"), layers={}
    )
    rows += [decode_row(case), *read_rows(case, slide, reads, "local")]
    if bucket:
        remove(bucket + "/ours.ome.zarr")
        remote = write_case(
            bucket + "/ours.ome.zarr",
            open_image(str(slide)).pixels,
            spacing_um=(0.5, 0.5),
            classes=("a", "b"),
            layers={},
        )
        rows += read_rows(remote, None, reads, "object store")
    return rows


def make_tiff(path: Path, side: int) -> Path:
    """A tiled, uncompressed TIFF, so that the writers are measured and not a decoder."""
    tiff_format.LAZY_PIXELS = 2**20
    pixels = np.moveaxis(ProceduralSlide(side_px=side).read((0, 0), (side, side)), 0, -1)
    tifffile.imwrite(path, pixels, tile=(512, 512), photometric="rgb", bigtiff=True)
    return path


def row(name: str, ours: float, theirs: float, unit: str, goal: float | None = None) -> Row:
    return {
        "row": name,
        "value": round(ours, 2),
        "reference": round(theirs, 2),
        "ratio": round(ours / theirs, 2),
        "unit": unit,
        "goal": goal,
    }


def in_turns(actions: list[Callable[[], Any]], rounds: int = ROUNDS) -> list[float]:
    """Median seconds of each action."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for action, spent in zip(actions, times, strict=True):
            start = time.perf_counter()
            action()
            spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in times]


def ingest_row(folder: Path, slide: Path, side: int) -> Row:
    """TIFF to pyramid; ome-zarr-py gets the same file as a dask array, its own defaults, and as many levels."""
    from ome_zarr.writer import write_image

    def ours() -> None:
        shutil.rmtree(folder / "a.ome.zarr", ignore_errors=True)
        source = open_image(str(slide)).pixels
        write_case(
            folder / "a.ome.zarr", source, spacing_um=(0.5, 0.5), classes=("a", "b"), layers={}, scheduler="threads"
        )

    def theirs() -> None:
        shutil.rmtree(folder / "b.ome.zarr", ignore_errors=True)
        pixels = dask.array.from_zarr(zarr.open_array(tifffile.imread(slide, aszarr=True), mode="r"))
        image = dask.array.moveaxis(pixels, -1, 0).rechunk((3, 1024, 1024))
        group = zarr.open_group(folder / "b.ome.zarr", mode="w", zarr_format=3)
        levels = [2**k for k in range(1, max(2, (side // 128).bit_length()))]
        write_image(
            image, group, axes="cyx", scale_factors=levels, scaler=None, storage_options={"chunks": (3, 512, 512)}
        )

    a, b = in_turns([ours, theirs])
    megabytes = 3 * side * side / 1e6
    return row("ingest a slide, against ome-zarr-py", megabytes / a, megabytes / b, "MB/s", 7.0)


def decode_row(case: Case) -> Row:
    """All of level 0 through Case, against the bare codec on the same chunks, already in memory, on as many threads."""
    files = sorted(p for p in Path(case.url, "0", "c").rglob("*") if p.is_file())
    chunks = [p.read_bytes() for p in files]
    side, block = case.shapes[0][0], 2048

    def ours() -> None:
        for y in range(0, side, block):
            for x in range(0, side, block):
                case.read_image(0, (y, x), (min(block, side - y), min(block, side - x)))

    def codec() -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda data: len(Zstd().decode(data)), chunks))

    a, b = in_turns([ours, codec])
    megabytes = 3 * side * side / 1e6
    return row("decode a whole slide, against the codec alone", megabytes / a, megabytes / b, "MB/s")


def read_rows(case: Case, slide: Path | None, reads: int, where: str) -> list[Row]:
    """Random unaligned patches, and aligned blocks that are cut into sixteen patches each."""
    forget_handles()
    rng, side = np.random.default_rng(0), case.shapes[0][0]
    corners = [tuple(int(v) for v in rng.integers(0, side - 256, 2)) for _ in range(reads)]
    blocks = [tuple(int(v) * 1024 for v in rng.integers(0, side // 1024, 2)) for _ in range(max(2, reads // 16))]
    array = zarr.open_array(
        zarr.storage.FsspecStore.from_url(case.url + "/0") if "://" in case.url else case.url + "/0", mode="r"
    )

    def patches(read: Callable[[int, int], Any]) -> Callable[[], None]:
        return lambda: [read(y, x) for y, x in corners] and None

    ours = patches(lambda y, x: case.read_image(0, (y, x), (256, 256)))
    peers = {"zarr-python": patches(lambda y, x: array[:, y : y + 256, x : x + 256])}
    if slide is not None:
        peers |= {"openslide": patches(openslide_reader(slide)), "MONAI WSIReader": patches(monai_reader(slide))}
    a, *others = in_turns([ours, *peers.values()])
    rows = [
        row(f"{where}: random 256 px patches, against {name}", reads / a, reads / b, "patches/s")
        for name, b in zip(peers, others, strict=True)
    ]
    a, b = in_turns(
        [
            lambda: [case.read_image(0, corner, (1024, 1024)) for corner in blocks],
            lambda: [array[:, y : y + 1024, x : x + 1024] for y, x in blocks],
        ]
    )
    count = 16 * len(blocks)
    rows.append(row(f"{where}: patches from 1024 px blocks, against zarr-python", count / a, count / b, "patches/s"))
    rows.append(row(f"{where}: blocks against single patches, ours", count / a, rows[0]["value"], "patches/s"))
    return rows


def openslide_reader(slide: Path) -> Callable[[int, int], Any]:
    import openslide

    opened = openslide.OpenSlide(slide)
    return lambda y, x: np.asarray(opened.read_region((x, y), 0, (256, 256)))


def monai_reader(slide: Path) -> Callable[[int, int], Any]:
    from monai.data import WSIReader

    reader = WSIReader("openslide")
    opened = reader.read(str(slide))
    return lambda y, x: reader.get_data(opened, location=(y, x), size=(256, 256), level=0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job, description=__doc__)))
