"""Train a segmentation model from annotators who disagree, and see what it learnt about them.

    python jobs/train.py                                    the demo: five simulated annotators of real handwritten digits
    python jobs/train.py --cohort ~/cohorts/chase           your own cohort, as jobs/ingest.py wrote it
    python jobs/train.py --cohort cohorts/mine --learn-from fused-staple method:majority-vote     what jobs/fuse.py wrote
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

from casebook import CasebookError, Cohort, open_cohort, write_cohort
from rayters.annotators.demo import demo_cohort
from rayters.inference.whole import see_case, see_cohort
from rayters.methods import AnnotatorConfusion, MajorityVote
from rayters.methods.sentinel import Standing, Verdict, judge
from rayters.networks.backbone import UNet
from rayters.patches.sampling import Sampling
from rayters.reports.assessment import assess
from rayters.reports.portrait import paint
from rayters.reports.rows import rows_table, write_rows
from rayters.reports.training import Contender, annotators_table, contest_rows, methods_table
from rayters.training.cluster import Crew, Trained, train
from rayters.training.connect import connected
from rayters.training.model import Model
from rayters.training.run import Run, resolve, to_json
from rayters.training.tracking import Tracker

# half of the patches where something was drawn, as nnU-Net does: at random, a small structure is hardly ever met
USUAL = Run(sampling=Sampling(patches_per_epoch=400, balance="class"), epochs=20)
# a few digits at a time, drawn anywhere, and a small net
DEMO = Run(sampling=Sampling(patches_per_epoch=320), epochs=10, patch_px=(64, 64), network=UNet(width=8))


@dataclass(frozen=True, kw_only=True)
class Job:
    """Train on a cohort and compare with the majority vote."""

    cohort: str | None = None  # URL of a cohort (a folder, memory:// or s3://); none: the embedded demo
    storage: str = "rayters-runs"  # where runs, models and pictures go; a folder or an s3:// URL
    name: str | None = None  # of the run; the same name resumes it. None: made from the method and its settings
    learn_from: tuple[str, ...] = ()  # layers of the cases, as jobs/fuse.py writes them, instead of the annotators' own
    baseline: bool = True  # train the majority vote as well
    seeds: int = 1  # train each method so many times, from --seed on; the table gives mean ± sd
    run: Annotated[Run, tyro.conf.arg(name="")] = field(default_factory=lambda: USUAL)
    crew: Crew = field(default_factory=Crew)
    track: tuple[Tracker, ...] = ()  # beside TensorBoard: mlflow, wandb; they read MLFLOW_TRACKING_URI, WANDB_API_KEY
    json: str | None = None  # write the table's rows to this file


def main(job: Job) -> None:
    """Trains, assesses, prints and paints."""
    storage = job.storage if "://" in job.storage else str(Path(job.storage).absolute())
    cohort = open_cohort(job.cohort) if job.cohort else demo_cohort(f"{storage}/demo-cohort")
    lessons = _lessons(job, cohort, storage)
    run = resolve(job.run if job.cohort else _demo_run(job.run), lessons)
    methods = [run.method]
    if job.baseline and not isinstance(run.method, MajorityVote):
        methods.insert(0, MajorityVote())
    with connected():
        trained = [_train(job, dataclasses.replace(run, method=method), lessons, storage) for method in methods]
    _report(job, cohort, trained, storage)


def _lessons(job: Job, cohort: Cohort, storage: str) -> Cohort:
    """The cohort as it is learnt from. With --learn-from it has a table of its own in the storage, which every worker can open."""
    if not job.learn_from:
        return cohort
    if cohort.reference in job.learn_from:
        print(
            f"warning: '{cohort.reference}' is the reference: what learns from it is the ceiling that clean labels give, and no result"
        )
    chosen = cohort.learning_from(tuple(dict.fromkeys(job.learn_from)))
    fingerprint = hashlib.sha256(json.dumps([cohort.url, chosen.annotators]).encode()).hexdigest()[:8]
    return write_cohort(
        f"{storage}/learn-from-{fingerprint}",
        chosen.cases,
        name=chosen.name,
        classes=chosen.classes,
        stable_annotators=chosen.stable_annotators,
        licence=chosen.licence,
        annotators=chosen.annotators,
    )


def _train(job: Job, run: Run, cohort: Cohort, storage: str) -> list[Trained]:
    """One method, from each seed."""
    runs = [dataclasses.replace(run, seed=run.seed + index) for index in range(job.seeds)]
    return [
        train(each, cohort, storage_path=storage, name=_name(job, each, cohort), crew=job.crew, track=job.track)
        for each in runs
    ]


def _demo_run(run: Run) -> Run:
    """The demo's settings, but for those that were given on the command line."""
    settings = ("sampling", "epochs", "patch_px", "network")
    untouched = [name for name in settings if getattr(run, name) == getattr(USUAL, name)]
    return dataclasses.replace(run, **{name: getattr(DEMO, name) for name in untouched})


def _name(job: Job, run: Run, cohort: Cohort) -> str:
    """The run's name: given, or the method with a fingerprint of all that decides what is computed."""
    method = type(run.method).__name__
    if job.name:
        return f"{job.name}-{method}" if job.baseline else job.name
    fingerprint = hashlib.sha256(json.dumps([to_json(run), cohort.url, job.crew.workers]).encode()).hexdigest()[:8]
    return f"{method}-{fingerprint}"


def _report(job: Job, cohort: Cohort, trained: list[list[Trained]], storage: str) -> None:
    test = cohort.split("test")
    contenders = [_assess(each, test) for each in trained]  # beside the annotators, whatever was learnt from
    print(f"\n{cohort.name}: {len(test.cases)} test cases, classes {', '.join(cohort.classes)}\n")
    print(methods_table(contenders), "\n")
    print(annotators_table(cohort, contenders), "\n")
    for verdict in (verdict for each in contenders for verdict in each.verdicts if verdict.state != "fine"):
        print(f"{verdict.state}: {verdict.why}\n")
    rows = contest_rows(contenders)
    print(rows_table(rows))
    if job.json:
        write_rows(rows, job.json)
    picture = Path("rayters-runs" if "://" in storage else storage) / "train.png"
    shown = [see_case(each[0].model, test, test.cases[0], annotators=test.annotators) for each in trained]
    paint(picture, cohort, shown, [each.assessed[0] for each in contenders])
    print(f"\ncohort   {cohort.url}\npicture  {picture}")
    for each in (each for seeds in trained for each in seeds):
        print(f"model    {each.folder}")
    print(
        f"\nnext     tensorboard --logdir {storage}\n"
        "         python jobs/ingest.py --help      your own images and annotators\n"
        "         python jobs/train.py --help       every field of run, method and gaze"
    )


def _assess(trained: list[Trained], test: Cohort) -> Contender:
    assessed = tuple(assess(each.model, see_cohort(each.model, test, annotators=test.annotators)) for each in trained)
    return Contender(assessed=assessed, verdicts=tuple(_verdict(each.model) for each in trained))


def _verdict(model: Model) -> Verdict:
    """What the sentinel says of the validation labels."""
    stands = Standing(**{field.name: model.measured[field.name] for field in dataclasses.fields(Standing)})
    return judge(stands, explains=isinstance(model.run.method, AnnotatorConfusion))


if __name__ == "__main__":
    try:
        main(tyro.cli(Job, description=__doc__, config=(tyro.conf.ConsolidateSubcommandArgs,)))
    except (CasebookError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
