"""Search over methods, gazes and resolutions at once, by agreement with the annotators alone.

    python jobs/tune.py --trials 4 --seeds-per-candidate 2 --epochs 4 --network.width 4      the demo, some minutes on two cores
    python jobs/tune.py --cohort cohorts/mine --space named --trials 40 --hours 8
    python jobs/tune.py --cohort cohorts/mine --methods annotator-confusion t-loss --gazes fixed-gaze foveation-gaze
    python jobs/tune.py --cohort cohorts/mine --objectives dice ece seconds --trials 60 --resume

Every method as it comes is always among the candidates. A candidate is trained from several seeds and counts as one. What is chosen
agrees best with the annotators' own labels of the validation split; the reference, where there is one, is reported and never used.
A search that was killed goes on with the same command and --resume, to the same ranking.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from casebook import CasebookError, Cohort, open_cohort
from rayters import gaze, methods
from rayters.annotators.agreement import pairwise_dice
from rayters.annotators.demo import demo_cohort
from rayters.networks.backbone import UNet
from rayters.patches.sampling import Sampling
from rayters.reports.cohort_agreement import look
from rayters.reports.leaderboard import Entry, Leaderboard, Seed
from rayters.reports.leaderboard_page import HEADER, headline, html, lines, markdown
from rayters.reports.rows import Row, rows_table, table, write_rows
from rayters.training.connect import connected
from rayters.training.run import Run, to_json
from rayters.training.tracking import Tracker, sweep_callbacks
from rayters.tuning.propose import Objective, Sampler
from rayters.tuning.search import Budget, Contender, Halved, Plan, search
from rayters.tuning.space import Space, fitting, named, parts_of
from rayters.tuning.sweep import Halving, run_trials
from rayters.tuning.trial import Bench, run_trial

# small trainings: a search compares, jobs/train.py then trains what it found at full size
SMALL = Run(sampling=Sampling(patches_per_epoch=160, balance="class"), epochs=6, network=UNet(width=8), restarts=1)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Search by agreement with the annotators."""

    cohort: str | None = None  # URL of a cohort (a folder or s3://); none: the embedded demo
    methods: tuple[str, ...] = ()  # names; none: all that fit the cohort (space 'all'), or the named three
    gazes: tuple[str, ...] = ("fixed-gaze",)  # of the space 'all'
    space: Literal["all", "named"] = "named"
    """named: trace regularisation x warm-up x confusion level x field of view x resolution; all: every field with a range"""
    trials: int = 20  # candidates beside the defaults of the methods
    seeds_per_candidate: int = 3
    at_once: int = 4  # candidates proposed together; the ranking depends on it, and on no number of machines
    sampler: Sampler = "tpe"
    objectives: tuple[Objective, ...] = (
        "dice",
    )  # with several, their trade-off is searched; the ranking is by the first
    halving: Halved = "none"
    """seeds: train a candidate from further seeds only where its first is in the upper half; epochs: besides, end first trainings that are
    behind (ASHA; give --at-once 9 or more; faster, but which ones are ended depends on timing, and with it the ranking)"""
    hours: float | None = None  # begin no further generation after so many hours
    gpu_hours: float | None = None  # the same, summed over all trainings
    gpus: float = 0.0  # of one training; a fraction shares a GPU
    max_cpus: int | None = None  # of a Ray started here
    storage: Path = Path("rayters-runs/search")  # results and models; a folder that all machines reach
    name: str = "search"
    resume: bool = False  # go on with the search of this name
    run: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=lambda: SMALL)
    track: tuple[Tracker, ...] = ()  # mlflow, wandb; they read MLFLOW_TRACKING_URI, WANDB_API_KEY
    json: str | None = None  # write the table's rows to this file


def main(job: Job) -> None:
    """Searches; prints the leaderboard, and writes it as HTML and Markdown."""
    folder = (job.storage / job.name).absolute()
    cohort = open_cohort(job.cohort) if job.cohort else demo_cohort(job.storage.absolute() / "demo-cohort")
    for split in ("train", "validation", "test"):
        if not cohort.split(split).cases:
            raise ValueError(f"cohort '{cohort.name}' has no case in split '{split}': a search needs all three")
    plan = _plan(job, cohort)
    _begin(folder, plan, job, cohort)
    contenders = _search(job, plan, cohort, folder)
    _report(job, _board(job, plan, cohort, contenders), folder)


def _plan(job: Job, cohort: Cohort) -> Plan:
    chosen = parts_of(job.methods, methods.ALL) if job.methods else None
    if job.space == "named":
        space = named(_fitting(chosen or named().methods, cohort, job.run))
    else:
        looks = parts_of(job.gazes, gaze.ALL)
        space = Space(methods=_fitting(chosen or methods.ALL, cohort, job.run), gazes=looks)
    return Plan(
        space=space,
        seeds=job.seeds_per_candidate,
        at_once=job.at_once,
        sampler=job.sampler,
        objectives=job.objectives,
        halving=job.halving,
        seed=job.run.seed,
    )


def _fitting(chosen: Sequence[type[Any]], cohort: Cohort, run: Run) -> tuple[type[Any], ...]:
    """Without those that learn about persons, where a name is none."""
    kept = fitting(chosen, stable_annotators=cohort.stable_annotators or run.force)
    for part in (each for each in chosen if each not in kept):
        print(f"left out: {part.__name__} learns about persons, and in '{cohort.name}' a name is not one person")
    return kept


def _begin(folder: Path, plan: Plan, job: Job, cohort: Cohort) -> None:
    """Notes what the search is, or sees that it is the one to resume."""
    about = {
        "cohort": cohort.url,
        "methods": [part.__name__ for part in plan.space.methods],
        "gazes": [part.__name__ for part in plan.space.gazes],
        "fields": list(plan.space.only),
        "downsampling": list(plan.space.downsampling),
        "plan": {name: value for name, value in dataclasses.asdict(plan).items() if name != "space"},
        "run": to_json(job.run),
    }
    about = json.loads(json.dumps(about))
    path = folder / "search.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about, indent=1))
        return
    if not job.resume:
        raise ValueError(f"{folder} holds a search: give --resume to go on with it, or another --name")
    before = json.loads(path.read_text())
    if changed := [name for name in about if about[name] != before.get(name)]:
        raise ValueError(
            f"the search in {folder} was begun with another {', '.join(changed)} (see search.json): --trials, --hours and --gpu-hours "
            "may change on --resume; for anything else give another --name"
        )


def _search(job: Job, plan: Plan, cohort: Cohort, folder: Path) -> list[Contender]:
    bench = Bench(cohort=cohort, space=plan.space, base=job.run, models=folder / "models")
    budget = Budget(trials=job.trials, hours=job.hours, gpu_hours=job.gpu_hours, gpus=job.gpus)
    total = (len(plan.space.methods) + job.trials) * plan.seeds
    contenders: list[Contender] = []
    with connected(cpus=job.max_cpus), tqdm(total=total, unit="training", desc="search") as bar:
        halving = Halving(most=job.run.epochs * (job.run.restarts + 1))

        def sweep(trials: Sequence[Any], may_stop: bool) -> list[Any]:
            bar.set_description(f"search, best {contenders[0].mean('dice'):.3f}" if contenders else "search, defaults")
            early = halving if may_stop else None
            results = run_trials(
                run_trial,
                trials,
                folder / "trials",
                data=bench,
                gpus=job.gpus,
                halving=early,
                callbacks=sweep_callbacks(job.track),
            )
            bar.update(len(trials))
            return results

        for contenders in search(plan, budget, sweep):  # noqa: B007
            pass
    return contenders


def _board(job: Job, plan: Plan, cohort: Cohort, contenders: Sequence[Contender]) -> Leaderboard:
    seen = tuple(row for row in cohort.cases if row.split != "test")
    agree = pairwise_dice(look(dataclasses.replace(cohort, cases=seen)).counts)
    np.fill_diagonal(agree, np.nan)
    noise = [
        (name, float(np.nanmean(row)) if np.isfinite(row).any() else float("nan"))
        for name, row in zip(cohort.annotators, agree, strict=True)
    ]
    settings = {
        "cohort": cohort.url,
        "methods": ", ".join(part.__name__ for part in plan.space.methods),
        "gazes": ", ".join(part.__name__ for part in plan.space.gazes),
        "searched": ", ".join(plan.space.only) or "every field that has a range",
        "level-0 pixels per pixel": ", ".join(map(str, plan.space.downsampling)),
        "seeds per candidate": str(plan.seeds),
        "sampler": f"{plan.sampler}, {plan.at_once} at once, for {', '.join(plan.objectives)}",
        "training": f"{job.run.epochs} epochs of {job.run.sampling.patches_per_epoch} patches, U-Net of width {job.run.network.width}",
    }
    entries = tuple(_entry(each) for each in contenders)
    return Leaderboard(cohort=cohort, entries=entries, settings=settings, noise=noise)


def _entry(contender: Contender) -> Entry:
    seeds = tuple(
        Seed(
            **{name: result[name] for name in ("dice", "ece", "seconds", "curve", "folder")},
            noisy=result["reported"]["noisy"],
            reference=result["reported"]["reference"],
        )
        for result in contender.results
    )
    about = {name: getattr(contender, name) for name in ("number", "candidate", "state", "is_default", "why")}
    return Entry(seeds=seeds, **about)


def _report(job: Job, board: Leaderboard, folder: Path) -> None:
    rows = search_rows(board)
    (folder / "leaderboard.html").write_text(html(board))
    (folder / "leaderboard.md").write_text(markdown(board))
    print("\n" + table(HEADER, lines(board)) + f"\n\n{headline(board)}\n")
    print(rows_table(rows))
    if job.json:
        write_rows(rows, job.json)
    best = max(board.chosen.seeds, key=lambda seed: seed.dice)
    print(
        f"\nreport   {folder / 'leaderboard.html'}\nbeside   leaderboard.md for a pull request\nmodel    {best.folder}"
    )


def search_rows(board: Leaderboard) -> list[Row]:
    """The chosen candidate beside the best default: by the criterion, and as reported."""
    best, default = board.chosen, board.baseline
    figures: list[tuple[str, Callable[[Entry], float]]] = [
        ("noisy validation Dice (the criterion)", lambda each: each.mean("dice")),
        ("noisy test Dice", lambda each: each.on_test("noisy")),
        ("Dice with the reference (reported only)", lambda each: each.on_test("reference")),
    ]
    return [
        Row(
            row=f"chosen / best fixed default, {what}",
            value=of(best),
            reference=of(default) if default else None,
            unit="Dice",
            goal="> 1",
        )
        for what, of in figures
        if not np.isnan(of(best))
    ]


if __name__ == "__main__":
    try:
        main(tyro.cli(Job, description=__doc__, config=(tyro.conf.ConsolidateSubcommandArgs,)))
    except (CasebookError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
