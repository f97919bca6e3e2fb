"""How fast cases are written and read, beside what others do with the same slide.

    python jobs/bench_storage.py               a procedural slide of 6,144 pixels a side, two to four minutes
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
from PIL import Image

from casebook import Case, open_case, write_case
from casebook.arrays import forget_handles
from casebook.formats import open_image
from casebook.formats import tiff as tiff_format
from casebook.ingest import Ingest, ingest
from casebook.location import join, remove
from casebook.procedural import ProceduralSlide
from casebook.table import table

ROUNDS = 3
Row = dict[str, Any]
Read = Callable[[int, int, int], Any]  # y, x, side -> pixels


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
    side, reads = (2048, 40) if job.quick else (6144, 300)
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
    """All rows on the local disk, then, with a bucket, the same on the object store."""
    slide, scanned = make_tiff(folder / "slide.tif", side), folder / "scanned.tif"
    with tifffile.TiffFile(slide) as tiff:
        tifffile.imwrite(scanned, tiff.asarray(), tile=(256, 256), photometric="rgb", compression="jpeg", bigtiff=True)
    small = make_small(folder / "small", 16)
    rows: list[Row] = []
    chunks: list[bytes] = []
    for where, place in [("local", str(folder))] + ([("object store", bucket)] if bucket else []):
        rows += [ingest_row(place, slide, side, where), small_row(place, small, where)]
        case = open_case(join(place, "a.ome.zarr"))
        chunks = chunks or [p.read_bytes() for p in sorted(Path(case.url, "0", "c").rglob("*")) if p.is_file()]
        rows += [decode_row(case, chunks, where), *read_rows(case, scanned, reads, where)]
    return rows


def make_small(folder: Path, count: int) -> Path:
    """A folder of small pictures, two annotators each."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(folder / f"c{number}.png")
        for who in ("anna", "ben"):
            Image.fromarray(rng.integers(0, 2, (256, 256), dtype=np.uint8)).save(folder / f"c{number}_{who}.png")
    return folder


def small_row(place: str, folder: Path, where: str) -> Row:
    """A folder of small cases: several at once, and one after the other."""

    def run(side_by_side: int) -> None:
        target = join(place, "small-cohort")
        remove(target)
        ingest(Ingest(source=str(folder), to=target, side_by_side=side_by_side))

    a, b = in_turns([lambda: run(4), lambda: run(1)])
    count = len(list(folder.glob("*_anna.png")))
    return row(f"{where}: ingest of small cases, four at once against one at a time", count / a, count / b, "cases/s")


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


def ingest_row(place: str, slide: Path, side: int, where: str) -> Row:
    """TIFF to pyramid; ome-zarr-py gets the same file as a dask array, its own defaults, and as many levels."""
    from ome_zarr.writer import write_image

    def ours() -> None:
        source = open_image(str(slide)).pixels
        write_case(
            join(place, "a.ome.zarr"), source, spacing_um=(0.5, 0.5), classes=("a", "b"), layers={}, existing="replace",
            scheduler="threads",
        )  # fmt: skip

    def theirs() -> None:
        target = join(place, "b.ome.zarr")
        remove(target)
        pixels = dask.array.from_zarr(zarr.open_array(tifffile.imread(slide, aszarr=True), mode="r"))
        image = dask.array.moveaxis(pixels, -1, 0).rechunk((3, 1024, 1024))
        store = zarr.storage.FsspecStore.from_url(target) if "://" in target else target
        group = zarr.open_group(store, mode="w", zarr_format=3)
        levels = [2**k for k in range(1, max(2, (side // 128).bit_length()))]
        write_image(
            image, group, axes="cyx", scale_factors=levels, scaler=None, storage_options={"chunks": (3, 512, 512)}
        )

    a, b = in_turns([ours, theirs])
    megabytes = 3 * side * side / 1e6
    return row(f"{where}: ingest a slide, against ome-zarr-py", megabytes / a, megabytes / b, "MB/s", 7.0)


def decode_row(case: Case, chunks: list[bytes], where: str) -> Row:
    """All of level 0 through Case, against the bare codec on the same chunks, already in memory, on as many threads."""
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
    return row(f"{where}: decode a whole slide, against the codec alone", megabytes / a, megabytes / b, "MB/s")


def read_rows(case: Case, scanned: Path, reads: int, where: str) -> list[Row]:
    """Random unaligned patches, and aligned blocks that are cut into sixteen patches each.

    openslide and MONAI read a JPEG slide from the local disk, which is all that they can.
    """
    forget_handles()
    rng, side = np.random.default_rng(0), case.shapes[0][0]
    corners = [(int(y), int(x)) for y, x in rng.integers(0, side - 256, (reads, 2))]
    blocks = [(int(y) * 1024, int(x) * 1024) for y, x in rng.integers(0, side // 1024, (max(2, reads // 16), 2))]
    array = zarr.open_array(
        zarr.storage.FsspecStore.from_url(case.url + "/0") if "://" in case.url else case.url + "/0", mode="r"
    )
    readers: dict[str, Read] = {
        "ours": lambda y, x, n: case.read_image(0, (y, x), (n, n)),
        "zarr-python": lambda y, x, n: array[:, y : y + n, x : x + n],
    }
    if where == "local":
        readers |= {"openslide": openslide_reader(scanned), "MONAI WSIReader": monai_reader(scanned)}
    rows = []
    for what, places, size in (("random 256 px patches", corners, 256), ("1024 px blocks, as patches", blocks, 1024)):
        count = len(places) * (size // 256) ** 2
        ours, *others = in_turns([every(read, places, size) for read in readers.values()])
        names = list(readers)[1:]
        rows += [
            row(f"{where}: {what}, against {name}", count / ours, count / spent, "patches/s")
            for name, spent in zip(names, others, strict=True)
        ]
    single, block = rows[0]["value"], rows[-1]["value"]
    rows.append(row(f"{where}: patches from blocks against single patches, ours", block, single, "patches/s"))
    return rows


def every(read: Read, places: list[tuple[int, int]], size: int) -> Callable[[], None]:
    def run() -> None:
        for y, x in places:
            read(y, x, size)

    return run


def openslide_reader(slide: Path) -> Read:
    import openslide

    opened = openslide.OpenSlide(slide)
    return lambda y, x, n: np.asarray(opened.read_region((x, y), 0, (n, n)))


def monai_reader(slide: Path) -> Read:
    from monai.data import WSIReader

    reader = WSIReader("openslide")
    opened = reader.read(str(slide))
    return lambda y, x, n: reader.get_data(opened, location=(y, x), size=(n, n), level=0)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job, description=__doc__)))
