"""Predict whole slides and volumes with a trained model, and write the result where every viewer finds it.

    python jobs/predict.py --model MODEL --cohort cohorts/mine                    beside the cases: layers, and maps in predictions/
    python jobs/predict.py --model MODEL --cohort cohorts/mine --to predicted     into a cohort of its own
    python jobs/predict.py --model FIRST SECOND --cohort s3://bucket/slides --tiling.flips --pool.workers 8 --pool.gpu
    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/predict.py --model s3://... --cohort s3://...

MODEL is a folder or URL that jobs/train.py printed; several are an ensemble. Written are: the posterior, the consensus, what each
annotator would draw and how reliable each is (where the method knows), the uncertainty, and the field of view where the net chose it.
A slide costs no more memory than a block of it. The same command goes on after a crash, and leaves alone what is done.
"""

import sys
import time
from dataclasses import dataclass, field
from typing import Literal

import tyro
from tqdm import tqdm

from casebook import CasebookError, CaseRow, Cohort, open_cohort, write_cohort
from casebook.location import canonical
from rayters.inference.predict_cohort import Pool, predict_cohort
from rayters.inference.tiling import Tiling
from rayters.inference.weights import pack
from rayters.inference.work import Done, plan_work
from rayters.inference.writing import Output
from rayters.reports.rows import Row, rows_table, write_rows
from rayters.training.connect import connected

GLASS = {"auto": None, "always": True, "never": False}


@dataclass(frozen=True, kw_only=True)
class Job:
    """Predict every case of a cohort, or of one split."""

    model: tuple[str, ...]  # folder or URL of a model; several are an ensemble
    cohort: str  # URL of a cohort: a folder or s3://
    split: Literal["all", "train", "validation", "test"] = "all"  # which cases
    to: str | None = None  # folder of a new cohort for the predictions; none: beside the cases
    name: str = "rayters"  # of the prediction: the consensus layer's id, annotators' layers are <name>-<annotator>
    skip_glass: Literal["auto", "always", "never"] = "auto"  # becomes background; auto: of large coloured pictures
    block_mib: int = 512  # memory for the maps of a block; more looks at fewer tiles twice
    limit: int | None = None  # only so many cases, to try
    tiling: Tiling = field(default_factory=Tiling)
    pool: Pool = field(default_factory=Pool)
    json: str | None = None  # write the table's rows to this file


def main(job: Job) -> int:
    """Predicts, prints a table; the exit code is 1 when a case failed."""
    cohort = open_cohort(job.cohort)
    cohort = cohort if job.split == "all" else cohort.split(job.split)
    cases = cohort.cases[: job.limit]
    if not cases:
        raise ValueError(f"cohort '{cohort.name}' has no case in split {job.split!r}: choose another --split")
    cohort = Cohort(**{**vars(cohort), "cases": cases})
    output = Output(name=job.name, to=canonical(job.to) if job.to else None, block_mib=job.block_mib)
    packed, began = pack(job.model), time.perf_counter()
    work = plan_work(packed, cohort, tiling=job.tiling, output=output, skip_glass=GLASS[job.skip_glass])
    with connected():
        arriving = predict_cohort(packed, cohort, work, job.pool)
        found: list[Done] = list(tqdm(arriving, total=len(cases), desc="predict", unit="case"))
    seconds = time.perf_counter() - began
    if output.to is not None:
        _write_table(output.to, cohort, [each.row for each in found if each.row is not None])
    _report(job, cohort, output, found, seconds)
    return int(any(each.state == "failed" for each in found))


def _write_table(to: str, cohort: Cohort, rows: list[CaseRow]) -> None:
    """The cohort of predictions: the posterior is its image, the layers are predictions."""
    if rows:
        rows = sorted(rows, key=lambda row: row.case)
        write_cohort(to, rows, name=f"{cohort.name}, predicted", classes=cohort.classes, licence=cohort.licence)


def _report(job: Job, cohort: Cohort, output: Output, found: list[Done], seconds: float) -> None:
    rows = [
        Row(
            row=f"cases {state}",
            value=float(sum(each.state == state for each in found)),
            reference=float(len(found)),
            unit="cases",
        )
        for state in ("predicted", "left alone", "failed")
    ]
    if pixels := sum(each.pixels for each in found):
        unit = "megapixels/s" if len(cohort.cases[0].shape) == 2 else "megavoxels/s"
        rows.append(Row(row="from Zarr to Zarr, start of the job included", value=pixels / 1e6 / seconds, unit=unit))
    print(f"\n{rows_table(rows)}\n")
    for each in found:
        if each.state == "failed":
            print(f"failed   {each.case}: {each.error}")
    if output.to is None:
        print(f"layers   {output.name} and {output.name}-<annotator> in {cohort.url}")
        print(f"maps     {cohort.url}/predictions/{output.name}")
    else:
        print(f"cohort   {output.to}")
    print("next     python jobs/compare.py --help      how good it is, and who among the annotators errs where")
    if job.json:
        write_rows(rows, job.json)


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Job, description=__doc__, config=(tyro.conf.ConsolidateSubcommandArgs,))))
    except (CasebookError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
