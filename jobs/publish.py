"""Publish a trained model to a registry, promote a version, list what is there.

    python jobs/publish.py publish --checkpoint rayters-runs/my-run/checkpoint_... --name digits --cohort rayters-runs/demo-cohort --promote
    python jobs/publish.py list
    python jobs/publish.py promote --name digits --version 0123456789ab
    python jobs/publish.py publish --registry s3://bucket/models --checkpoint ... --name vessels

A version is named by its content: publishing the same model twice changes nothing, and promoting an older version rolls back. With
--cohort the card also gets the pixel spacing and the annotators' confusion matrices, as the model sees them on the validation split.
"""

import dataclasses
import math
import statistics
import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from casebook import CasebookError, Cohort, open_cohort
from rayters.inference.whole import see_cohort
from rayters.reports.assessment import assess
from rayters.reports.rows import Row, table, write_rows
from rayters.serving.registry import ModelError, Words, current, names, promote, publish, versions
from rayters.training.model import load_model

REGISTRY = "rayters-runs/models"


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Copy a checkpoint into the registry."""

    checkpoint: str  # folder with run.json and weights.safetensors, as printed at the end of jobs/train.py
    name: str  # of the model, as clients will ask for it
    registry: str = REGISTRY  # a folder or an s3:// URL
    cohort: str | None = None  # URL of the cohort that it was trained on
    promote: bool = False  # serve this version from now on
    words: Annotated[Words, tyro.conf.arg(name="")] = field(default_factory=Words)


@dataclass(frozen=True, kw_only=True)
class Promote:
    """Serve this version from now on."""

    name: str
    version: str
    registry: str = REGISTRY


@dataclass(frozen=True, kw_only=True)
class List:
    """Every model, its versions, and which of them is served."""

    registry: str = REGISTRY
    json: str | None = None  # write a row for each version to this file; the value is 1 for the one that is served


Job = (
    Annotated[Publish, tyro.conf.subcommand("publish")]
    | Annotated[Promote, tyro.conf.subcommand("promote")]
    | Annotated[List, tyro.conf.subcommand("list")]
)


def main(job: Job) -> None:
    """Does one of the three."""
    if isinstance(job, Publish):
        _publish(job)
    elif isinstance(job, Promote):
        print(f"served from now on: {promote(job.registry, job.name, job.version).id}")
    else:
        _list(job)


def _publish(job: Publish) -> None:
    words, spacing, confusions = job.words, None, None
    if job.cohort:
        cohort = open_cohort(job.cohort)
        spacing, confusions = _spacing(cohort), _confusions(job.checkpoint, cohort)
        if words.trained_on == Words.trained_on:
            words = dataclasses.replace(words, trained_on=cohort.name, licence=cohort.licence or words.licence)
    card = publish(job.registry, job.name, job.checkpoint, words=words, spacing_um=spacing, confusions=confusions)
    print(f"published {card.id}: {card.method}, classes {', '.join(card.classes)}")
    if job.promote:
        promote(job.registry, card.name, card.version)
        print(f"served from now on: {card.id}")
    print(
        f"\nnext     python jobs/serve.py --models {job.registry}" + (f" --cohort {job.cohort}" if job.cohort else "")
    )


def _spacing(cohort: Cohort) -> tuple[float, ...]:
    """The median of the training cases, per axis."""
    return tuple(statistics.median(axis) for axis in zip(*(row.spacing_um for row in cohort.cases), strict=True))


def _confusions(checkpoint: str, cohort: Cohort) -> tuple[tuple[tuple[float | None, ...], ...], ...] | None:
    """(A, K, K) as the model sees its annotators on the validation split; None for a class that it never believed."""
    model, seen = load_model(checkpoint), cohort.split("validation")
    if not seen.cases or not set(model.annotators) <= set(cohort.annotators):
        return None
    found = assess(model, see_cohort(model, seen)).estimated
    return tuple(
        tuple(tuple(None if math.isnan(p) else round(p, 6) for p in row) for row in one) for one in found.tolist()
    )


def _list(job: List) -> None:
    served = {name: current(job.registry, name).version for name in names(job.registry)}
    cards = [(c, c.version == served[name]) for name in served for c in versions(job.registry, name)]
    if not cards:
        raise ModelError(f"{job.registry} has no promoted model: python jobs/publish.py publish --help")
    lines = [[c.id, "yes" if now else "", c.method, c.trained_on, c.published_on] for c, now in cards]
    print(table(["model", "served", "method", "trained on", "published"], lines))
    if job.json:
        write_rows([Row(row=c.id, value=float(now), unit="served") for c, now in cards], job.json)


if __name__ == "__main__":
    try:
        main(tyro.cli(Job, description=__doc__))  # type: ignore[arg-type]
    except (CasebookError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
