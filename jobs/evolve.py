"""Find how a number of a method should change during a training: population based training.

    python jobs/evolve.py                                                     the trace weight on the demo, some minutes on two cores
    python jobs/evolve.py --cohort cohorts/mine --fields trace-weight --members 8 --epochs 20
    python jobs/evolve.py --method mean-labels --fields dice

Members train side by side. After every epoch the worst quarter takes over net and numbers of the best quarter and changes the
numbers; what is ahead agrees best with the annotators' vote on the validation split. Beside the population the method is trained as
it comes, from as many seeds as the population has members, so that both had equally many tries. One that was killed goes on with the
same command.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from casebook import CasebookError, Cohort, open_cohort
from rayters import methods
from rayters.annotators.demo import demo_cohort
from rayters.networks.backbone import UNet
from rayters.patches.sampling import Sampling
from rayters.reports.rows import Row, rows_table, table, write_rows
from rayters.training.connect import connected
from rayters.training.run import Run
from rayters.tuning.space import Space, parts_of
from rayters.tuning.sweep import Mutation, ReportState, run_population, run_trials
from rayters.tuning.trial import Bench, run_member, run_trial

SMALL = Run(sampling=Sampling(patches_per_epoch=160, balance="class"), epochs=8, network=UNet(width=8), restarts=0)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Let a population of trainings find a schedule."""

    cohort: str | None = None  # URL of a cohort (a folder or s3://); none: the embedded demo
    method: str = "annotator-confusion"
    fields: tuple[str, ...] = ("trace-weight",)  # numbers of the method that may change
    members: int = 8  # of the population
    every: int = 1  # epochs between two comparisons
    gpus: float = 0.0  # of one training; a fraction shares a GPU
    max_cpus: int | None = None  # of a Ray started here
    storage: Path = Path("rayters-runs/evolve")  # results and models; a folder that all machines reach
    run: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=lambda: SMALL)
    json: str | None = None  # write the table's rows to this file


def main(job: Job) -> None:
    """Trains the population and the method as it comes; prints the schedule that won."""
    cohort = open_cohort(job.cohort) if job.cohort else demo_cohort(job.storage.absolute() / "demo-cohort")
    space = Space(methods=parts_of((job.method,), methods.ALL), only=tuple(f.replace("-", "_") for f in job.fields))
    folder = job.storage.absolute()
    bench = Bench(cohort=cohort, space=space, base=replace(job.run, restarts=0), models=folder / "models")
    default = space.default(space.methods[0])
    trials = [{"candidate": default, "seed": seed} for seed in range(job.members)]
    with connected(cpus=job.max_cpus):
        fixed = run_trials(run_trial, trials, folder / "fixed", data=bench, gpus=job.gpus)
        grown = run_population(
            partial(_member, default=default),
            _mutations(space),
            folder,
            members=job.members,
            every=job.every,
            seed=job.run.seed,
            data=bench,
            gpus=job.gpus,
        )
    _report(job, cohort, [each for each in fixed if each], grown)


def _member(
    values: Mapping[str, float], bench: Bench, report: ReportState, state: bytes | None, default: Mapping[str, Any]
) -> dict[str, Any]:
    return run_member({"candidate": {**default, **values}, "seed": 0}, bench, report, state)


def _mutations(space: Space) -> dict[str, Mutation]:
    """The ranges of the fields, from their metadata.

    Raises:
        ValueError: for a field that is chosen from options: there is nothing to change little by little.
    """
    dimensions = space.dimensions(space.methods[0])
    if fixed := [each.name for each in dimensions if each.options]:
        raise ValueError(
            f"{', '.join(fixed)} is chosen from options: a schedule needs numbers; search it with jobs/tune.py"
        )
    return {each.name: Mutation(low=each.low, high=each.high, log=each.log) for each in dimensions}


def _report(job: Job, cohort: Cohort, fixed: Sequence[Mapping[str, Any]], grown: Sequence[Mapping[str, Any]]) -> None:
    if not fixed or not grown:
        raise RuntimeError("every training died: Ray's log says why")
    best, usual = (max(each, key=lambda result: result["dice"]) for each in (grown, fixed))
    names = [name for name in best["schedule"][0] if name != "epoch"]
    lines = [[str(each["epoch"]), *(f"{each[name]:.4g}" for name in names)] for each in best["schedule"]]
    print("\nthe schedule that won\n" + table(["epoch", *names], lines) + "\n")
    raters = [
        ("noisy validation Dice (the criterion)", lambda r: r["dice"]),
        ("noisy test Dice", lambda r: _test(r, "noisy")),
    ]
    if cohort.reference:
        raters.append(("Dice with the reference (reported only)", lambda r: _test(r, "reference")))
    rows = [
        Row(row=f"population / method as it comes, best of {job.members} each, {what}", value=of(best), reference=of(usual),
            unit="Dice", goal="> 1")
        for what, of in raters
    ]  # fmt: skip
    print(rows_table(rows) + f"\n\nmodel    {best['folder']}")
    if job.json:
        write_rows(rows, job.json)


def _test(result: Mapping[str, Any], rater: str) -> float:
    return float(np.mean(list(result["reported"][rater].values())))


if __name__ == "__main__":
    try:
        main(tyro.cli(Job, description=__doc__, config=(tyro.conf.ConsolidateSubcommandArgs,)))
    except (CasebookError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
