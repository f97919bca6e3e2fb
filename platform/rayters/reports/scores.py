"""Every metric for models x cases x annotators, as one long table.

model, case, group, rater (an annotator, the reference, or 'annotators' for all of them as a set), metric, value
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from casebook import IGNORE, Case, CaseRow, Cohort, open_case
from rayters.inference.maps import Floats
from rayters.metrics.calibration import calibration
from rayters.metrics.distribution import dice_match, dice_max, dice_soft, ged_squared, sample_diversity
from rayters.metrics.overlap import dice_of, iou_of, overlap_counts
from rayters.metrics.surface import surface_distances
from rayters.reports.predicted import Predicted, level_to_compare

SET = "annotators"  # the rater of metrics that compare sets
Labels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a figure is called, and which way is good."""

    name: str
    higher_is_better: bool
    unit: str = ""


METRICS = (
    Metric(name="Dice", higher_is_better=True),
    Metric(name="IoU", higher_is_better=True),
    Metric(name="HD95", higher_is_better=False, unit="um"),
    Metric(name="ASSD", higher_is_better=False, unit="um"),
    Metric(name="missed", higher_is_better=False),
    Metric(name="NSD", higher_is_better=True),
    Metric(name="ECE", higher_is_better=False),
    Metric(name="Brier", higher_is_better=False),
    Metric(name="NLL", higher_is_better=False, unit="nats"),
    Metric(name="GED² (V)", higher_is_better=False),
    Metric(name="GED² (U)", higher_is_better=False),
    Metric(name="diversity", higher_is_better=True),
    Metric(name="Dice soft", higher_is_better=True),
    Metric(name="Dice max", higher_is_better=True),
    Metric(name="Dice match", higher_is_better=True),
)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure."""

    model: str
    case: str
    group: str
    rater: str
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """One case on the level at which it is compared, as everybody sees it.

    raters: (*S) each, annotators who looked and the reference; labels, posterior, drawn: by the name of the model.
    """

    row: CaseRow
    case: Case
    level: int
    annotators: dict[str, Labels]
    reference: Labels | None
    labels: dict[str, Labels]
    posterior: dict[str, Floats]
    drawn: dict[str, dict[str, Labels]]

    @property
    def spacing_um(self) -> tuple[float, ...]:
        """Of a pixel of the level."""
        return self.case.spacing_um[self.level]


def open_compared(cohort: Cohort, row: CaseRow, models: Sequence[Predicted]) -> Compared:
    """Reads one case for all models."""
    case = open_case(row.url)
    level = level_to_compare(case)
    shape = case.shapes[level]
    everyone = (*cohort.annotators, *((cohort.reference,) if cohort.reference else ()))
    planes = case.read_labels(everyone, level, (0,) * len(shape), shape)
    drew = {name: plane for name, plane in zip(everyone, planes, strict=True) if (plane != IGNORE).any()}
    reference = drew.pop(cohort.reference, None) if cohort.reference else None
    labels = {m.name: found for m in models if (found := m.labels(case, row.case, shape)) is not None}
    posterior = {m.name: seen for m in models if (seen := m.posterior(cohort, row.case, shape)) is not None}
    drawn = {m.name: m.drawn(case, row.case, cohort.annotators, shape) for m in models if m.name in labels}
    return Compared(
        row=row, case=case, level=level, annotators=drew, reference=reference, labels=labels, posterior=posterior, drawn=drawn
    )  # fmt: skip


def score_case(
    seen: Compared, classes: int, *, reference: str | None, tolerance_um: float | None = None
) -> Iterator[Score]:
    """All figures of one case. tolerance_um: of NSD; None: two pixels of level 0 along the coarsest axis."""
    tolerance = tolerance_um or 2 * max(seen.case.spacing_um[0])
    raters = seen.annotators | ({reference: seen.reference} if reference and seen.reference is not None else {})
    for model, labels in seen.labels.items():
        for rater, drawing in raters.items():
            figures = _against(labels, drawing, classes, seen.spacing_um, tolerance)
            if model in seen.posterior:
                figures |= _calibrated(seen.posterior[model], drawing)
            for metric, value in figures.items():
                yield Score(
                    model=model, case=seen.row.case, group=seen.row.group, rater=rater, metric=metric, value=value
                )
        for metric, value in _as_sets(seen, model, classes).items():
            yield Score(model=model, case=seen.row.case, group=seen.row.group, rater=SET, metric=metric, value=value)


def _against(
    labels: Labels, drawing: Labels, classes: int, spacing: tuple[float, ...], tolerance: float
) -> dict[str, float]:
    """One map against one map, means over the foreground classes.

    missed: 1 where a class is in one map only. Its distance is infinite and no mean can hold it, so that HD95 and ASSD are those of the
    other cases: without this figure beside them, who misses the hard cases would seem the more exact.
    """
    counts = overlap_counts(labels, drawing, classes=classes)
    surface = surface_distances(labels, drawing, classes=classes, spacing=spacing, tolerance=tolerance)
    return {
        "Dice": float(dice_of(counts).mean()),
        "IoU": float(iou_of(counts).mean()),
        "HD95": float(surface.hd95.mean()),
        "ASSD": float(surface.assd.mean()),
        "missed": float(np.isinf(surface.hd95).any()),
        "NSD": float(surface.nsd.mean()),
    }


def _calibrated(posterior: Floats, drawing: Labels) -> dict[str, float]:
    found = calibration(posterior, drawing)
    return {"ECE": found.ece, "Brier": found.brier, "NLL": found.nll}


def _as_sets(seen: Compared, model: str, classes: int) -> dict[str, float]:
    """What the model says the annotators draw, against what they drew; a model without a word on them is a set of one."""
    theirs = np.stack([*seen.annotators.values()]) if seen.annotators else None
    if theirs is None:
        return {}
    samples = np.stack([*seen.drawn[model].values()] or [seen.labels[model]])
    found = {
        "GED² (V)": ged_squared(samples, theirs, classes=classes),
        "Dice max": dice_max(samples, theirs, classes=classes)[0],
        "Dice match": dice_match(samples, theirs, classes=classes),
    }
    if len(samples) > 1:
        found["diversity"] = sample_diversity(samples, classes=classes)
    if len(samples) > 1 and len(theirs) > 1:
        found["GED² (U)"] = ged_squared(samples, theirs, classes=classes, statistic="U")
    if model in seen.posterior:
        written = np.stack([(theirs == k).sum(axis=0) for k in range(classes)]).astype(np.float64)
        looked = written.sum(axis=0, keepdims=True)
        found["Dice soft"] = float(dice_soft(seen.posterior[model], written / np.maximum(looked, 1)).mean())
    return found


def write_scores(scores: Sequence[Score], path: Path) -> None:
    """As CSV, for whoever wants another table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "case", "group", "rater", "metric", "value"])
        writer.writerows([s.model, s.case, s.group, s.rater, s.metric, f"{s.value:.6g}"] for s in scores)
