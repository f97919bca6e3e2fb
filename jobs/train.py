"""Train a segmentation model from annotators who disagree, and see what it learnt about them.

    python jobs/train.py                                    the demo: five simulated annotators of real handwritten digits
    python jobs/train.py --cohort ~/cohorts/chase           your own cohort, as jobs/ingest.py wrote it
    python jobs/train.py --cohort s3://bucket/cohort --storage s3://bucket/runs --crew.workers 4 --crew.gpu
    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/train.py

Two methods are trained, the majority vote as the baseline and the one you choose; a table compares them on the test split, and a
picture shows one case: what each annotator drew, what each method believes, and whom it believes.
"""

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from casebook import CasebookError, Cohort, open_cohort
from rayters.annotators.demo import demo_cohort
from rayters.inference.whole import SeenCase, see_case, see_cohort
from rayters.methods import MajorityVote
from rayters.reports.assessment import Assessment, assess
from rayters.reports.portrait import paint
from rayters.reports.rows import Row, rows_table, table, write_rows
from rayters.training.cluster import Crew, Trained, train
from rayters.training.connect import connected
from rayters.training.model import load_model
from rayters.training.run import Run, resolve, to_json

DEMO_PATCH_PX = (64, 64)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Train on a cohort and compare with the majority vote."""

    cohort: str | None = None  # URL of a cohort (a folder, memory:// or s3://); none: the embedded demo
    storage: str = "rayters-runs"  # where runs, models and pictures go; a folder or an s3:// URL
    name: str | None = None  # of the run; the same name resumes it. None: made from the method and its settings
    baseline: bool = True  # train the majority vote as well
    run: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=Run)
    crew: Crew = field(default_factory=Crew)
    json: str | None = None  # write the table's rows to this file


def main(job: Job) -> None:
    """Trains, assesses, prints and paints."""
    storage = job.storage if "://" in job.storage else str(Path(job.storage).absolute())
    cohort = open_cohort(job.cohort) if job.cohort else demo_cohort(f"{storage}/demo-cohort")
    run = job.run if job.cohort or job.run.patch_px else dataclasses.replace(job.run, patch_px=DEMO_PATCH_PX)
    runs = (
        [run]
        if isinstance(run.method, MajorityVote) or not job.baseline
        else [dataclasses.replace(run, method=MajorityVote()), run]
    )
    runs = [resolve(each, cohort) for each in runs]
    with connected():
        trained = [
            train(each, cohort, storage_path=storage, name=_name(job, each, cohort), crew=job.crew) for each in runs
        ]
    _report(job, cohort, trained, storage)


def _name(job: Job, run: Run, cohort: Cohort) -> str:
    """The run's name: given, or the method with a fingerprint of all that decides what is computed."""
    method = type(run.method).__name__
    if job.name:
        return f"{job.name}-{method}" if job.baseline else job.name
    fingerprint = hashlib.sha256(json.dumps([to_json(run), cohort.url, job.crew.workers]).encode()).hexdigest()[:8]
    return f"{method}-{fingerprint}"


def _report(job: Job, cohort: Cohort, trained: list[Trained], storage: str) -> None:
    models = [load_model(each.folder) for each in trained]
    test = cohort.split("test")
    found = [assess(model, see_cohort(model, test)) for model in models]
    seen: list[SeenCase] = [see_case(model, test, test.cases[0]) for model in models]
    print(f"\n{cohort.name}: {len(test.cases)} test cases, classes {', '.join(cohort.classes)}\n")
    print(_methods_table(found), "\n")
    print(_annotators_table(cohort, found), "\n")
    rows = _rows(found)
    print(rows_table(rows))
    if job.json:
        write_rows(rows, job.json)
    picture = Path("rayters-runs" if "://" in storage else storage) / "train.png"
    paint(picture, cohort, seen, found)
    print(f"\ncohort   {cohort.url}\npicture  {picture}")
    for each, assessed in zip(trained, found, strict=True):
        print(f"model    {each.folder}  ({assessed.method})")
    print(
        f"\nnext     tensorboard --logdir {storage}\n         python jobs/ingest.py --help      your own images and annotators"
    )
    print("         python jobs/train.py --help       every field of run, method and gaze")


def _methods_table(found: list[Assessment]) -> str:
    lines = []
    for each in found:
        dice = "-" if each.dice is None else f"{each.dice.mean():.3f} ± {each.dice.std():.3f}"
        error = "-" if each.confusion_error is None else f"{each.confusion_error:.3f}"
        lines.append([each.method, dice, error, "learnt" if each.learnt else "counted"])
    return table(["method", "Dice (test, vs reference)", "confusion RMSE", "confusions"], lines)


def _annotators_table(cohort: Cohort, found: list[Assessment]) -> str:
    header = [
        "annotator",
        *[f"{each.method}: Dice" for each in found],
        *[f"{each.method}: reliability" for each in found],
        "true",
    ]
    lines = []
    for index, name in enumerate(cohort.annotators):
        agreement = [f"{each.annotator_dice[:, index].mean():.3f}" for each in found]
        reliability = [f"{each.estimated_reliability[index]:.3f}" for each in found]
        true = found[0].true_reliability
        lines.append([name, *agreement, *reliability, "-" if true is None else f"{true[index]:.3f}"])
    return table(header, lines)


def _rows(found: list[Assessment]) -> list[Row]:
    ours, vote = found[-1], found[0]
    rows = []
    if ours is not vote and ours.dice is not None and vote.dice is not None:
        words = {"AnnotatorConfusion": "annotator confusion"}
        name = words.get(ours.method, ours.method)
        rows.append(
            Row(
                row=f"{name} / majority vote, Dice",
                value=ours.dice.mean(),
                reference=vote.dice.mean(),
                goal="clearly > 1",
            )
        )
        if ours.confusion_error is not None and vote.confusion_error is not None:
            rows.append(
                Row(
                    row=f"{name} / majority vote, confusion RMSE",
                    value=ours.confusion_error,
                    reference=vote.confusion_error,
                    goal="< 1",
                )
            )
    elif ours.dice is not None:
        rows.append(Row(row=f"{ours.method}, Dice", value=ours.dice.mean()))
    rows.append(Row(row=f"{ours.method}, mean Dice with the annotators", value=_nanmean(ours)))
    return rows


def _nanmean(found: Assessment) -> float:
    drawn = found.annotator_dice[found.annotator_dice == found.annotator_dice]
    return float(drawn.mean())


if __name__ == "__main__":
    try:
        main(tyro.cli(Job, description=__doc__, config=(tyro.conf.ConsolidateSubcommandArgs,)))
    except (CasebookError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
