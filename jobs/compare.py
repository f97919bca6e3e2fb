"""How good are the models, who among the annotators errs where, and which labels are probably wrong: tables, tests and a report.

    python jobs/compare.py --cohort cohorts/mine --models rayters                           what jobs/predict.py wrote beside the cases
    python jobs/compare.py --cohort cohorts/mine --models ours=rayters fused-dawid-skene    two layers of every case
    python jobs/compare.py --cohort cohorts/mine --models A=./predicted-a B=./predicted-b   cohorts of predictions (predict.py --to)

Every metric is measured for models x cases x annotators; means come with bootstrap intervals over patients, pairs of models with
Wilcoxon's test. The report is one HTML file with its pictures inside; beside it lie report.md, scores.csv, suspects.csv and labels.csv.
"""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tqdm import tqdm

from casebook import CasebookError, Cohort, open_cohort
from rayters.reports.annotators import ranking
from rayters.reports.page import annotators_rows, headline, html, markdown, metrics_rows, ranking_said, tests_rows
from rayters.reports.predicted import Predicted, parse
from rayters.reports.rows import Row, rows_table, table, write_rows
from rayters.reports.scores import Compared, Metric, open_compared, write_scores
from rayters.reports.study import Study, add_pictures, make_study

DICE = Metric(name="Dice", higher_is_better=True)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Compare predictions of a cohort with its annotators and its reference."""

    cohort: str  # URL of a cohort: a folder or s3://
    models: tuple[str, ...] = (
        "rayters",
    )  # NAME or TITLE=NAME of layers beside the cases, TITLE=./FOLDER of a cohort of predictions
    split: Literal["all", "train", "validation", "test"] = "test"  # which cases
    report: Path = Path("rayters-report")  # folder of the report
    tolerance_um: float | None = None  # of NSD, micrometres; none: two pixels
    limit: int | None = None  # only so many cases, to try
    json: str | None = None  # write the table's rows to this file


def main(job: Job) -> None:
    """Measures, prints the tables, writes the report."""
    cohort = open_cohort(job.cohort)
    cohort = cohort if job.split == "all" else cohort.split(job.split)
    cohort = replace(cohort, cases=cohort.cases[: job.limit])
    if not cohort.cases:
        raise ValueError(f"cohort '{cohort.name}' has no case in split {job.split!r}: choose another --split")
    models = [parse(text) for text in job.models]
    study = make_study(cohort, models, tolerance_um=job.tolerance_um, cases=_read(cohort, models))
    add_pictures(study, models)
    _write(study, job.report)
    _print(study, job)


def _read(cohort: Cohort, models: list[Predicted]) -> Iterator[Compared]:
    for row in tqdm(cohort.cases, desc="compare", unit="case"):
        yield open_compared(cohort, row, models)


def _write(study: Study, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(html(study))
    (folder / "report.md").write_text(markdown(study))
    write_scores(study.scores, folder / "scores.csv")
    with (folder / "suspects.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "annotator", "score", "pixels", "written", "seen", "level", "first", "past"])
        for s in study.suspects:
            names = (study.cohort.classes[s.region.written], study.cohort.classes[s.region.seen])
            where = (s.level, s.region.low, s.region.high)
            writer.writerow([s.case, s.annotator, f"{s.region.score:.4g}", s.region.pixels, *names, *where])
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "annotator", "doubt"])
        writer.writerows([d.case, d.annotator, f"{d.score:.4f}"] for d in study.doubts)


def _print(study: Study, job: Job) -> None:
    print(f"\n{headline(study)}\n")
    print(table(*metrics_rows(study, "truth")), "\n")
    if len(study.models) > 1:
        print(table(*tests_rows(study.pairs(DICE))), "\n")
    print(table(*annotators_rows(study.portraits[study.best()])), "\n")
    if said := ranking_said(study.portraits[study.best()]):
        print(said, "\n")
    rows = _rows(study)
    print(f"{rows_table(rows)}\n\nreport   {job.report / 'index.html'}")
    print(
        "beside   report.md for a pull request, scores.csv with every figure, suspects.csv and labels.csv: what to look at"
    )
    if job.json:
        write_rows(rows, job.json)


def _rows(study: Study) -> list[Row]:
    """Of every model: Dice, the share of cases without a distance, and its ranking of the annotators where the true one is known."""
    rows = []
    for name in study.models:
        for metric in ("Dice", "missed"):
            mean = study.interval(name, metric, raters="truth").mean
            rows.append(Row(row=f"{name}, {metric} with {study.truth}", value=mean))
        if not np.isnan(found := ranking(study.portraits[name])):
            rows.append(Row(row=f"{name}, rank correlation of the annotators", value=found, goal="1"))
    return rows


if __name__ == "__main__":
    try:
        main(tyro.cli(Job, description=__doc__))
    except (CasebookError, ValueError) as error:
        sys.exit(f"error: {error}")
