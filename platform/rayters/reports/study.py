"""A comparison, put together: the figures, the annotators, the suspicious labels and the pictures of one cohort and some models."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from casebook import Cohort
from rayters.inference.maps import most_probable
from rayters.reports.annotators import AnnotatorReport, Portrait
from rayters.reports.label_quality import Region, suspect
from rayters.reports.predicted import Predicted
from rayters.reports.scores import METRICS, SET, Compared, Metric, Score, open_compared, score_case
from rayters.reports.statistics import (
    Comparison,
    Interval,
    Stability,
    by_group,
    compare_pairs,
    interval,
    rank_stability,
)
from rayters.reports.thumbnails import around, overlay

MOST_SHOWN = 24  # suspicious regions in a report; the list beside it has all of them


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A region of somebody's label that a model contradicts."""

    case: str
    annotator: str
    region: Region
    level: int
    thumbnail: str = ""


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """How improbable somebody's label map of a case is, see label_quality; score in [0, 1]."""

    case: str
    annotator: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A case in pictures: everybody's outlines, and one model's consensus."""

    case: str
    model: str
    dice: float
    thumbnail: str


@dataclass(kw_only=True)
class Study:
    """Everything that a report says."""

    cohort: Cohort
    models: tuple[str, ...]
    truth: str  # what models are ranked against: the reference, or the mean over the annotators
    scores: list[Score] = field(default_factory=list)
    portraits: dict[str, list[Portrait]] = field(default_factory=dict)
    faces: dict[str, str] = field(default_factory=dict)  # annotator -> thumbnail of the case in which it differs most
    suspects: list[Suspect] = field(default_factory=list)
    doubts: list[Doubt] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)

    def judge(self, seen: Compared) -> None:
        """Every annotator's label against the models' mean posterior; the reference where nobody drew."""
        if not seen.posterior:
            return
        posterior, case = np.mean([*seen.posterior.values()], axis=0), seen.row.case
        raters = seen.annotators or ({"reference": seen.reference} if seen.reference is not None else {})
        for name, labels in raters.items():
            verdict = suspect(posterior, labels)
            self.doubts.append(Doubt(case=case, annotator=name, score=verdict.score))
            self.suspects += [
                Suspect(case=case, annotator=name, region=region, level=seen.level) for region in verdict.regions
            ]

    def table(self, metric: str, *, raters: str) -> dict[str, dict[str, float]]:
        """Model -> group -> value. raters: 'truth', or 'annotators' for the mean over all of them."""
        chosen = {SET} if any(s.metric == metric and s.rater == SET for s in self.scores) else self._raters(raters)
        found = {}
        for model in self.models:
            mine = [s for s in self.scores if s.model == model and s.metric == metric and s.rater in chosen]
            found[model] = by_group([s.value for s in mine], [s.group for s in mine])
        return found

    def interval(self, model: str, metric: str, *, raters: str) -> Interval:
        """Over groups."""
        mine = self.table(metric, raters=raters)[model]
        return interval(list(mine.values()), list(mine))

    def _raters(self, raters: str) -> set[str]:
        if raters == "truth" and self.cohort.reference:
            return {self.cohort.reference}
        return set(self.cohort.annotators)

    def metrics(self) -> list[Metric]:
        """Those that were measured at least once."""
        there = {score.metric for score in self.scores}
        return [metric for metric in METRICS if metric.name in there]

    def pairs(self, metric: Metric) -> list[Comparison]:
        """Paired tests against the truth."""
        return compare_pairs(self.table(metric.name, raters="truth"))

    def stability(self, metric: Metric) -> Stability:
        """Of the ranking against the truth."""
        return rank_stability(self.table(metric.name, raters="truth"), higher_is_better=metric.higher_is_better)

    def best(self) -> str:
        """The model with the highest Dice against the truth."""
        return max(
            self.models, key=lambda model: np.nan_to_num(self.interval(model, "Dice", raters="truth").mean, nan=-1)
        )


def make_study(
    cohort: Cohort, models: Sequence[Predicted], *, tolerance_um: float | None, cases: Iterator[Compared] | None = None
) -> Study:
    """Reads every case once, and the cases that are shown a second time.

    Raises:
        ValueError: when no case was predicted by any model.
    """
    classes = len(cohort.classes)
    truth = cohort.reference or "the annotators"
    study = Study(cohort=cohort, models=tuple(m.name for m in models), truth=truth)
    reports = {m.name: AnnotatorReport(cohort.annotators, classes, m.name) for m in models}
    warnings.filterwarnings("ignore", message=".*may result in nan/inf distance.*")
    for seen in cases or (open_compared(cohort, row, models) for row in cohort.cases):
        study.scores += score_case(seen, classes, reference=cohort.reference, tolerance_um=tolerance_um)
        study.judge(seen)
        for report in reports.values():
            report.add(seen)
    if not study.scores:
        raise ValueError(
            f"no case of cohort '{cohort.name}' has both a prediction named {', '.join(study.models)} and a drawing: "
            "predict first, with jobs/predict.py"
        )
    study.portraits = {name: report.portraits() for name, report in reports.items()}
    study.suspects.sort(key=lambda each: -each.region.score)
    study.doubts.sort(key=lambda each: -each.score)
    return study


def add_pictures(study: Study, models: Sequence[Predicted], *, most: int = MOST_SHOWN, gallery: int = 6) -> None:
    """Paints what the report shows: the suspicious regions, each annotator's worst case, and some cases in whole."""
    cohort, best = study.cohort, study.best()
    rows = {row.case: row for row in cohort.cases}
    numbers = {name: index for index, name in enumerate(cohort.annotators)}
    study.suspects[:most] = [
        Suspect(
            **{
                **vars(each),
                "thumbnail": _region_picture(open_compared(cohort, rows[each.case], models), each, numbers),
            }
        )
        for each in study.suspects[:most]
    ]
    for portrait in study.portraits[best]:
        seen = open_compared(cohort, rows[portrait.case], models)
        study.faces[portrait.name] = overlay(seen, seen.labels[best], {portrait.name: numbers[portrait.name]})
    for case, dice in _spread_of_cases(study, best, gallery):
        seen = open_compared(cohort, rows[case], models)
        study.shown.append(Shown(case=case, model=best, dice=dice, thumbnail=overlay(seen, seen.labels[best], numbers)))


def _region_picture(seen: Compared, each: Suspect, numbers: dict[str, int]) -> str:
    window = around(each.region.low, each.region.high, seen.case.shapes[seen.level])
    posterior = np.mean([*seen.posterior.values()], axis=0)
    believed = most_probable(posterior)
    return overlay(seen, believed, {each.annotator: numbers.get(each.annotator, 0)}, window)


def _spread_of_cases(study: Study, model: str, number: int) -> list[tuple[str, float]]:
    """The worst, the best, and some between: a report that shows only one end deceives."""
    chosen = study._raters("truth")
    by_case: dict[str, list[float]] = {}
    for score in study.scores:
        if score.model == model and score.metric == "Dice" and score.rater in chosen:
            by_case.setdefault(score.case, []).append(score.value)
    ranked = sorted(((case, float(np.mean(values))) for case, values in by_case.items()), key=lambda pair: pair[1])
    picks = sorted({round(i) for i in np.linspace(0, len(ranked) - 1, min(number, len(ranked)))})
    return [ranked[i] for i in picks]
