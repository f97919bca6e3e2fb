"""What is in a cohort: its cases, who drew what, how well they agree, and which pairs a person should look at.

    python jobs/inspect_cohort.py --cohort cohorts/chase
    python jobs/inspect_cohort.py --cohort s3://bucket/slides --split train --pictures inspect/ --json inspect.json

Agreement is measured on the finest level of at most 4 megapixels. Pictures (with --pictures): one page of cases with everyone's
outlines, and the matrices of pairwise Dice and Cohen's kappa.
"""

import json
import math
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from casebook import IGNORE, CasebookError, Cohort, open_cohort
from casebook.table import table
from rayters.annotators.agreement import cohen_kappa, pairwise_dice
from rayters.reports.cohort_agreement import Looked, look


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is in a cohort, who agrees with whom, and what looks wrong."""

    cohort: str
    """URL of the cohort: a folder, s3://bucket/name ..."""
    split: Literal["all", "train", "validation", "test"] = "all"
    """Which cases."""
    pictures: Path | None = None
    """Folder for the pictures; none are made without it."""
    shown: int = 6
    """Cases in the picture: the ones with most disagreement."""
    json: Path | None = None
    """Write the tables to this file."""


def report(cohort: Cohort, looked: Looked) -> str:
    people = cohort.annotators
    dice, kappa = pairwise_dice(looked.counts), cohen_kappa(looked.counts)
    cases = [
        (r.case, r.split, r.group, " x ".join(map(str, r.shape)), f"{r.spacing_um[-1]:.4g}", r.channels, r.dtype, len(r.annotators),
         _share(r.foreground[1:], r.shape), f"{looked.fleiss.get(r.case, math.nan):.2f}")
        for r in cohort.cases
    ]  # fmt: skip
    who = [
        (p, looked.drew[p], f"{np.nanmean(np.delete(dice[i], i)):.3f}" if len(people) > 1 else "-")
        for i, p in enumerate(people)
    ]
    pairs = [
        (people[a], people[b], f"{dice[a, b]:.3f}", f"{kappa[a, b]:.3f}")
        for a, b in combinations(range(len(people)), 2)
    ]
    lines = [
        about(cohort),
        "",
        table(
            ("case", "split", "group", "pixels", "um", "c", "dtype", "annotators", "foreground", "Fleiss"), cases[:40]
        ),
    ]
    lines += [f"... and {len(cases) - 40} more cases"] if len(cases) > 40 else []
    lines += [
        "",
        table(("annotator", "cases", "mean Dice with the others"), who),
        "",
        table(("annotator", "and", "Dice", "Cohen kappa"), pairs),
    ]
    lines += ["", f"to look at ({len(looked.suspicious)})"]
    lines.append(
        table(
            ("case", "pair", "Dice", "why"),
            [(c, p, f"{d:.2f}", w) for c, p, d, w in looked.suspicious[:30]],
            widest=110,
        )
    )
    if looked.failed:
        lines += ["", f"UNREADABLE ({len(looked.failed)})", table(("case", "why"), looked.failed, widest=140)]
    return "\n".join(lines)


def _share(foreground: tuple[tuple[int, ...], ...], shape: tuple[int, ...]) -> str:
    return f"{100 * sum(map(sum, foreground)) / math.prod(shape):.1f} %"


def about(cohort: Cohort) -> str:
    splits = ", ".join(f"{len(cohort.split(s).cases)} {s}" for s in ("train", "validation", "test"))
    identity = "the same person in every case" if cohort.stable_annotators else "NOT the same person in every case"
    return "\n".join(
        (
            f"cohort {cohort.name!r} at {cohort.url}",
            f"cases      {len(cohort.cases)} ({splits}), {len({r.group for r in cohort.cases})} groups",
            f"classes    {', '.join(f'{k} {name}' for k, name in enumerate(cohort.classes))}; {IGNORE} IGNORE",
            f"annotators {', '.join(cohort.annotators)} ({identity}); reference {cohort.reference or 'none'}",
            f"licence    {cohort.licence or 'not stated'}",
        )
    )


def rows(cohort: Cohort, looked: Looked) -> list[dict[str, Any]]:
    """The tables, in the shape that all jobs write."""
    dice, kappa = pairwise_dice(looked.counts), cohen_kappa(looked.counts)
    values: list[tuple[str, float, str]] = [
        ("cases", len(cohort.cases), "count"),
        ("suspicious pairs", len(looked.suspicious), "count"),
    ]
    values.append(("Fleiss kappa, mean over cases", float(np.nanmean([*looked.fleiss.values(), math.nan])), "kappa"))
    for a, b in combinations(range(len(cohort.annotators)), 2):
        pair = f"{cohort.annotators[a]} - {cohort.annotators[b]}"
        values += [(f"Dice {pair}", float(dice[a, b]), "Dice"), (f"Cohen {pair}", float(kappa[a, b]), "kappa")]
    return [
        {"row": r, "value": None if math.isnan(v) else v, "reference": None, "ratio": None, "unit": u, "goal": None}
        for r, v, u in values
    ]


def main(job: Job) -> int:
    try:
        cohort = open_cohort(job.cohort)
    except CasebookError as error:
        print(error, file=sys.stderr)
        return 2
    cohort = cohort if job.split == "all" else cohort.split(job.split)
    looked = look(cohort)
    print(report(cohort, looked))
    if job.json:
        job.json.write_text(json.dumps(rows(cohort, looked), indent=2))
    if job.pictures:
        from rayters.reports.cohort_pictures import draw  # a table does not wait for matplotlib

        print("\n" + "\n".join(f"picture {path}" for path in draw(cohort, looked, job.pictures, job.shown)))
    return 1 if looked.failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job, description=__doc__)))
