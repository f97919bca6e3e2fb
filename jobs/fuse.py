"""Fuse the annotators of every case of a cohort into one layer, written beside their own.

    python jobs/fuse.py --cohort ~/cohorts/chase                          Dawid-Skene, on a private Ray
    python jobs/fuse.py --cohort ~/cohorts/lidc --how staple              STAPLE, case by case
    ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/fuse.py --cohort s3://bucket/cohort

Cases are fused in parallel, block by block: a slide costs no more memory than a block. Cases that have the layer already, fused in the
same way by the same annotators (and the same confusions), are left alone, so the same command goes on after a crash; a case that fails,
or whose worker is lost, is named at the end and the others are done all the same.

vote           the most frequent class, ties to the lowest (background)
staple         each case by itself: who performed how, here?                            SimpleITK's result, but IGNORE is nobody's vote
spatial-staple the same, but performance varies within the case; holds a case in memory
dawid-skene    one confusion per annotator over the whole cohort; needs an id to be one person
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import ray
import tyro
from numpy.typing import NDArray
from ray.exceptions import RayError
from tqdm import tqdm

from casebook import Case, CasebookError, Cohort, Layer, open_case, open_cohort
from casebook.layers import add_layer
from rayters.annotators.case_fusion import FusedSource, blocks, count_case, recipe, spatial_staple_case, staple_model
from rayters.annotators.dawid_skene import DawidSkene, Patterns, add_patterns, dawid_skene
from rayters.metrics.confusion_error import reliability
from rayters.metrics.overlap import dice_of, overlap_counts
from rayters.reports.rows import Row, rows_table, table, write_rows
from rayters.training.connect import connected


@dataclass(frozen=True, kw_only=True)
class Job:
    """Which cohort, and how."""

    cohort: str  # URL of a cohort: a folder or s3://
    how: Literal["dawid-skene", "staple", "spatial-staple", "vote"] = "dawid-skene"
    layer: str | None = None  # id of the new layer; none: fused-<how>
    replace: bool = False  # fuse again where the layer exists, whoever made it
    balanced: bool = False  # STAPLE: let a large background not outweigh what was marked
    force: bool = False  # Dawid-Skene although an id is not one person in this cohort
    limit: int | None = None  # only so many cases, to try
    json: str | None = None  # write the table's rows to this file

    @property
    def layer_id(self) -> str:
        """The new layer's id."""
        return self.layer or f"fused-{self.how}"


@dataclass(frozen=True, kw_only=True)
class Fused:
    """What became of one case.

    dice: (2, K-1) of the fused layer and of the vote against the reference, NaN without one.
    """

    case: str
    state: Literal["fused", "left alone", "failed"]
    dice: NDArray[np.float64] | None = None
    error: str = ""


def main(job: Job) -> int:
    """Fuses, prints a table; the exit code is 1 when a case failed."""
    cohort = open_cohort(job.cohort)
    _check(job, cohort)
    rows = cohort.cases[: job.limit]
    with connected():
        model = _learn(job, cohort, [row.url for row in rows]) if job.how == "dawid-skene" else None
        task = ray.remote(num_cpus=1, max_retries=2)(fuse_case)
        believed = ray.put(model)
        pending = {
            task.remote(job, cohort.annotators, row.url, row.case, believed, cohort.reference): row.case for row in rows
        }
        found = [
            Fused(case=case, state="failed", error=_said(done)) if isinstance(done, RayError) else done
            for case, done in tqdm(_as_done(pending), total=len(pending), desc=job.how)
        ]
    _report(job, cohort, found, model)
    return int(any(each.state == "failed" for each in found))


def fuse_case(
    job: Job, annotators: tuple[str, ...], url: str, name: str, model: DawidSkene | None, reference: str | None
) -> Fused:
    """One case, in whatever process. What goes wrong with it is its own: the cohort goes on."""
    try:
        case = open_case(url)
        tool = recipe(job.how, annotators, balanced=job.balanced, model=model)
        needed = job.replace or not _is_fused(case, job.layer_id, tool)
        if needed:
            layer = Layer(id=job.layer_id, role="fusion", tool=tool)
            case = add_layer(url, layer, _source(job, case, annotators, model), existing="replace")
        dice = _against(case, job.layer_id, annotators, reference) if reference else None
        return Fused(case=name, state="fused" if needed else "left alone", dice=dice)
    except (CasebookError, ValueError, OSError) as error:
        return Fused(case=name, state="failed", error=str(error))


def _is_fused(case: Case, layer_id: str, tool: str) -> bool:
    """Whether the layer is there and made by this very recipe; what somebody else made is not ours to overwrite, and counts as well."""
    made_by = next((layer.tool or "" for layer in case.layers if layer.id == layer_id), None)
    return made_by is not None and (made_by == tool or not made_by.startswith("rayters "))


def _source(job: Job, case: Case, annotators: tuple[str, ...], model: DawidSkene | None) -> Any:
    if job.how == "spatial-staple":
        return spatial_staple_case(case, annotators)
    if job.how == "staple":
        model = staple_model(count_case(case, annotators), classes=len(case.classes), balanced=job.balanced)
    return FusedSource(case=case, annotators=annotators, model=model)


def _learn(job: Job, cohort: Cohort, urls: Sequence[str]) -> DawidSkene:
    """Counts every case where it lies, and runs EM on the sum."""
    count = ray.remote(num_cpus=1, max_retries=2)(_count)
    pending = {count.remote(url, cohort.annotators): url for url in urls}
    counted: list[Patterns] = []
    for url, done in tqdm(_as_done(pending), total=len(pending), desc="count"):
        if isinstance(done, RayError):
            print(f"not counted   {url}: {_said(done)}; what is believed of the annotators comes from the other cases")
        elif done is not None:
            counted.append(done)
    if not counted:
        raise ValueError(f"no case of cohort '{cohort.name}' could be read: look at one with jobs/ingest.py --check")
    return dawid_skene(add_patterns(counted), classes=len(cohort.classes))


def _count(url: str, annotators: tuple[str, ...]) -> Patterns | None:
    try:
        return count_case(open_case(url), annotators)
    except (CasebookError, OSError):
        return None  # the second pass names it


def _as_done(pending: Mapping[Any, str]) -> Iterator[tuple[str, Any]]:
    """(name, result) of each task in the order in which they come; the result of one that was lost with its worker is the error."""
    waiting = list(pending)
    while waiting:
        (done,), waiting = ray.wait(waiting)
        try:
            yield pending[done], ray.get(done)
        except RayError as error:
            yield pending[done], error


def _said(error: RayError) -> str:
    """The last line: before it stands a traceback, or what Ray knows of the machine."""
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__).strip()


def _against(case: Case, layer: str, annotators: tuple[str, ...], reference: str) -> NDArray[np.float64]:
    """Dice of the fused layer, and of the vote, against the reference: (2, K-1)."""
    vote = FusedSource(case=case, annotators=annotators)
    classes = len(case.classes)
    counts = np.zeros((2, classes - 1, 3), dtype=np.int64)
    for origin, size in blocks(case.shapes[0], 1024):
        fused, truth = case.read_labels((layer, reference), 0, origin, size)
        for row, prediction in enumerate((fused, vote.read(origin, size))):
            counts[row] += overlap_counts(prediction, truth, classes=classes)
    return dice_of(counts)


def _check(job: Job, cohort: Cohort) -> None:
    if job.layer_id in (*cohort.annotators, cohort.reference):
        raise ValueError(
            f"layer {job.layer_id!r} is an annotator or the reference of this cohort: choose another --layer"
        )
    if job.how == "dawid-skene" and not cohort.stable_annotators and not job.force:
        raise ValueError(
            f"in cohort '{cohort.name}' an annotator's id is not the same person in every case (stable_annotators=False), so that a "
            "confusion over the cohort belongs to nobody: use --how staple or vote, or --force to treat an id as a person all the same"
        )


def _report(job: Job, cohort: Cohort, found: Sequence[Fused], model: DawidSkene | None) -> None:
    if model is not None:
        lines = [[name, f"{r:.3f}"] for name, r in zip(cohort.annotators, reliability(model.confusion), strict=True)]
        print(f"\n{table(['annotator', 'reliability'], lines)}")
    rows = [
        Row(
            row=f"cases {state}",
            value=float(sum(each.state == state for each in found)),
            reference=float(len(found)),
            unit="cases",
        )
        for state in ("fused", "left alone", "failed")
    ]
    scored = [each.dice.mean(axis=1) for each in found if each.dice is not None]
    if scored:
        ours, vote = np.mean(scored, axis=0)
        rows.append(
            Row(row=f"{job.how} / vote, Dice with the reference", value=float(ours), reference=float(vote), goal=">= 1")
        )
    print(f"\n{rows_table(rows)}\n")
    for each in found:
        if each.state == "failed":
            print(f"failed   {each.case}: {each.error}")
    print(f"layer    {job.layer_id} in {cohort.url}")
    print("next     python jobs/fuse.py --help      other ways to fuse")
    if job.json:
        write_rows(rows, job.json)


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Job, description=__doc__)))
    except (CasebookError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
