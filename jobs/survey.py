"""Every method on one cohort, trained alike: Dice with the annotators and with the reference, with intervals over patients.

    python jobs/survey.py                                        the demo, some minutes on two cores
    python jobs/survey.py --cohort cohorts/mine --seeds 3
    python jobs/survey.py --cohort cohorts/mine --methods majority-vote annotator-confusion --epochs 20

Each method is as it comes, but for the soft Dice beside its cross-entropy, where it has that choice: small nets need it where
foreground is rare, and one that has it and one that has not cannot be compared. Seeds are averaged by case, then cases by patient;
intervals are bootstrap intervals over patients, p is Wilcoxon's over patients against the first method of the table, corrected by
Holm. A survey that was killed goes on with the same command; a longer one re-uses what a shorter one trained.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from casebook import CasebookError, Cohort, open_cohort
from rayters import methods
from rayters.annotators.demo import demo_cohort
from rayters.networks.backbone import UNet
from rayters.patches.sampling import Sampling
from rayters.reports.rows import Row, table, write_rows
from rayters.reports.statistics import Interval, by_group, holm, interval, paired_p
from rayters.training.connect import connected
from rayters.training.run import Run, to_json
from rayters.tuning.space import Space, fitting, parts_of
from rayters.tuning.sweep import run_trials
from rayters.tuning.trial import Bench, run_trial

USUAL = Run(sampling=Sampling(patches_per_epoch=200, balance="class"), epochs=8, network=UNet(width=8), restarts=1)
Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Train every method from several seeds, and measure it on the test split."""

    cohort: str | None = None  # URL of a cohort (a folder or s3://); none: the embedded demo
    methods: tuple[str, ...] = ()  # names; none: all that fit the cohort
    seeds: int = 2
    dice: float = 1.0  # weight of the soft Dice, of methods that have this choice
    gpus: float = 0.0  # of one training; a fraction shares a GPU
    max_cpus: int | None = None  # of a Ray started here
    storage: Path = Path("rayters-runs/survey")  # results; one survey per cohort and way of training
    run: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=lambda: USUAL)
    json: str | None = None  # write the table's rows to this file


def main(job: Job) -> None:
    """Trains what is missing, prints the table."""
    cohort = open_cohort(job.cohort) if job.cohort else demo_cohort(job.storage.absolute() / "demo-cohort")
    if not cohort.split("test").cases:
        raise ValueError(f"cohort '{cohort.name}' has no case in split 'test': nothing could be measured")
    _begin(job, cohort)
    space = Space(methods=_fitting(job, cohort), only=("dice",))
    candidates = [_with_dice(each, job.dice) for each in space.defaults()]
    trials = [{"candidate": each, "seed": seed} for each in candidates for seed in range(job.seeds)]
    bench = Bench(cohort=cohort, space=space, base=job.run)
    with connected(cpus=job.max_cpus):
        results = run_trials(run_trial, trials, job.storage.absolute(), data=bench, gpus=job.gpus)
    found = _by_method(space, results, job.seeds)
    for rater in ("reference", "noisy") if cohort.reference else ("noisy",):
        _print(found, rater, cohort, job)
    if job.json:
        write_rows(_rows(found, cohort), job.json)


def _begin(job: Job, cohort: Cohort) -> None:
    """A folder of results belongs to one cohort and one way of training."""
    path, about = job.storage / "survey.json", {"cohort": cohort.url, "dice": job.dice, "run": to_json(job.run)}
    if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(about)):
        raise ValueError(f"{path} is of another cohort or another training: give another --storage")
    job.storage.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1))


def _fitting(job: Job, cohort: Cohort) -> tuple[type[Any], ...]:
    """Without those that learn about persons, where a name is none."""
    chosen = parts_of(job.methods, methods.ALL)
    fits = fitting(chosen, stable_annotators=cohort.stable_annotators or job.run.force)
    for part in (each for each in chosen if each not in fits):
        print(f"left out: {part.__name__} learns about persons, and in '{cohort.name}' a name is not one person")
    return fits


def _with_dice(candidate: Mapping[str, Any], weight: float) -> dict[str, Any]:
    return {name: weight if name.endswith(".dice") else value for name, value in candidate.items()}


def _by_method(space: Space, results: Sequence[Any], seeds: int) -> dict[str, Results]:
    """The results of each method; one that could not be trained is named and left out."""
    found: dict[str, Results] = {}
    for number, part in enumerate(space.methods):
        mine = results[number * seeds : (number + 1) * seeds]
        failures = [
            "a training died" if each is None else each["failed"] for each in mine if not each or "failed" in each
        ]
        if failures:
            print(f"left out: {part.__name__}: {failures[0]}")
        else:
            found[part.__name__] = mine
    return found


def _cases(results: Results, rater: str) -> dict[str, float]:
    """Dice by test case, mean over seeds."""
    pairs = [(case, value) for each in results for case, value in each["reported"][rater].items()]
    return by_group([value for _, value in pairs], [case for case, _ in pairs])


def _interval(results: Results, rater: str, cohort: Cohort) -> Interval:
    group = {row.case: row.group for row in cohort.cases}
    cases = _cases(results, rater)
    return interval(list(cases.values()), [group[case] for case in cases])


def _print(found: Mapping[str, Results], rater: str, cohort: Cohort, job: Job) -> None:
    """One table, best first; p against the first method that was asked for."""
    whom = f"the reference '{cohort.reference}'" if rater == "reference" else "the annotators"
    base = next(iter(found))
    p = dict(
        zip(
            list(found)[1:],
            holm([_p(found[base], found[name], rater, cohort) for name in list(found)[1:]]),
            strict=True,
        )
    )
    order = sorted(found, key=lambda name: -_interval(found[name], rater, cohort).mean)
    lines = []
    for name in order:
        where = _interval(found[name], rater, cohort)
        seeds = [float(np.mean(list(each["reported"][rater].values()))) for each in found[name]]
        ece, seconds = (float(np.mean([each[figure] for each in found[name]])) for figure in ("ece", "seconds"))
        spread = f"{np.std(seeds, ddof=1):.3f}" if len(seeds) > 1 else "-"
        lines.append([name, f"{where.mean:.3f}", f"{where.low:.3f} - {where.high:.3f}", spread, f"{p[name]:.2f}" if name in p else "-",
                      f"{ece:.3f}", f"{seconds:.0f}"])  # fmt: skip
    groups = _interval(found[base], rater, cohort).groups
    print(f"\nDice with {whom}, {groups} patients of the test split, {job.seeds} seeds")
    print(table(["method", "Dice", "95 %", "sd of seeds", f"p, {base}", "ECE", "s"], lines))


def _p(first: Results, second: Results, rater: str, cohort: Cohort) -> float:
    group = {row.case: row.group for row in cohort.cases}
    one, other = (
        by_group(list(c.values()), [group[case] for case in c]) for c in (_cases(first, rater), _cases(second, rater))
    )
    return paired_p(np.array([other[name] - one[name] for name in sorted(one)]))


def _rows(found: Mapping[str, Results], cohort: Cohort) -> list[Row]:
    raters = ("reference", "noisy") if cohort.reference else ("noisy",)
    base = next(iter(found))
    named = {"reference": "the reference", "noisy": "the annotators"}
    return [
        Row(
            row=f"{name} / {base}, Dice with {named[rater]}",
            value=_interval(results, rater, cohort).mean,
            reference=_interval(found[base], rater, cohort).mean,
            unit="Dice",
        )
        for rater in raters
        for name, results in found.items()
    ]


if __name__ == "__main__":
    try:
        main(tyro.cli(Job, description=__doc__, config=(tyro.conf.ConsolidateSubcommandArgs,)))
    except (CasebookError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
