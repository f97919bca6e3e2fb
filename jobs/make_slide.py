"""Write a procedural gigapixel slide with three simulated annotators, and say what it cost.

    python jobs/make_slide.py --to cohorts/giant                    40,000 x 40,000 x 3
    python jobs/make_slide.py --to cohorts/small --side 4000        a laptop's cup of tea
    python jobs/make_slide.py --to s3://bucket/giant --address auto   all machines of a Ray cluster write it

Kill it at any moment and start it again: it goes on where it stopped, and the files are the same to the bit. The last step reads
random boxes back from every level-0 array and compares them with the generator.
"""

import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from casebook import Case, CasebookError, Cohort, ConflictError, describe_case, open_case, put_cases, write_case
from casebook.location import canonical, join
from casebook.one_pass import Scheduler
from casebook.procedural import CLASSES, ProceduralSlide, procedural_layers
from casebook.table import table

GOAL_RSS_MB = 1000


@dataclass(frozen=True, kw_only=True)
class Job:
    """Write a procedural gigapixel slide with three simulated annotators."""

    to: str
    """URL of the cohort that gets the slide."""
    side: int = 40_000
    """Pixels per side."""
    seed: int = 0
    """Another seed, another slide."""
    boxes: int = 200
    """Random boxes that are compared with the generator at the end."""
    address: str | None = None
    """Ray cluster ('auto', 'host:6379') whose machines write the blocks; without it, threads here."""
    json: Path | None = None
    """Write the table to this file."""


def main(job: Job) -> int:
    scheduler: Scheduler = None
    if job.address:
        from ray_blocks import connect  # a laptop does not wait for Ray to be imported

        scheduler = connect(job.address)
    url = join(canonical(job.to), "cases", f"procedural-{job.side}-{job.seed}.ome.zarr")
    slide, layers = ProceduralSlide(side_px=job.side, seed=job.seed), procedural_layers(job.side, job.seed)
    started = time.perf_counter()
    try:
        with tqdm(unit="block", disable=None, smoothing=0.02) as bar:
            case = write_case(
                url,
                slide,
                spacing_um=(0.5, 0.5),
                classes=CLASSES,
                layers=layers,
                scheduler=scheduler,
                progress=lambda done, total: advance(bar, done, total),
            )
    except ConflictError:
        case = open_case(url)
        print(f"{url} is there already; only checking it")
    except CasebookError as error:
        print(error, file=sys.stderr)
        return 2
    written_s = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wrong = compare(case, job.boxes, job.seed)
    empty = Cohort(
        url=job.to,
        name="procedural",
        classes=CLASSES,
        annotators=(),
        stable_annotators=True,
        reference="truth",
        licence="CC0-1.0",
        cases=(),
    )
    put_cases(job.to, [describe_case(case, split="train", group=case.name)], empty=empty)
    rows = figures(case, written_s, peak_mb, wrong)
    print(table(("row", "value", "unit", "goal"), [(r["row"], r["value"], r["unit"], r["goal"]) for r in rows]))
    print(f"\nnext: python jobs/inspect_cohort.py --cohort {job.to}")
    if job.json:
        job.json.write_text(json.dumps(rows, indent=2))
    return 1 if wrong else 0


def advance(bar: Any, done: int, total: int) -> None:
    bar.total, bar.n = total, done
    bar.refresh()


def compare(case: Case, boxes: int, seed: int) -> int:
    """Boxes that differ from the generator; of the image and of all layers."""
    side = case.shapes[0][0]
    slide, layers = ProceduralSlide(side_px=side, seed=seed), procedural_layers(side, seed)
    rng, size, wrong = np.random.default_rng(seed), (min(256, side),) * 2, 0
    for _ in range(boxes):
        y, x = (int(v) for v in rng.integers(0, side - size[0] + 1, 2))
        planes = case.read_labels([layer.id for layer in layers], 0, (y, x), size)
        drawn = np.stack([source.read((y, x), size) for source in layers.values()])
        wrong += not (
            np.array_equal(case.read_image(0, (y, x), size), slide.read((y, x), size)) and np.array_equal(planes, drawn)
        )
    return wrong


def figures(case: Case, seconds: float, peak_mb: float, wrong: int) -> list[dict[str, Any]]:
    side = case.shapes[0][0]
    raw_mb = side * side * (3 + len(case.layers)) / 1e6
    stored = (
        sum(f.stat().st_size for f in Path(case.url).rglob("*") if f.is_file()) / 1e6
        if os.path.isdir(case.url)
        else float("nan")
    )
    values = [
        ("pixels at level 0", side * side / 1e9, "Gpx", None),
        ("raw bytes, image and layers", round(raw_mb), "MB", None),
        ("stored, with the pyramid", round(stored), "MB", None),
        ("time", round(seconds, 1), "s", None),
        ("speed, generation included", round(raw_mb / seconds, 1), "MB/s", None),
        ("peak memory of the process", round(peak_mb), "MB", GOAL_RSS_MB),
        ("boxes that differ", wrong, "count", 0),
    ]
    return [{"row": r, "value": v, "reference": None, "ratio": None, "unit": u, "goal": g} for r, v, u, g in values]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job, description=__doc__)))
