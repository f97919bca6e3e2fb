"""What a training job says in the end: methods against the reference, and what each believes of each annotator.

A contender is one method, trained from one or several seeds; figures are means over cases, then mean ± sd over seeds.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from casebook import Cohort
from rayters.methods.sentinel import Verdict
from rayters.reports.assessment import Assessment
from rayters.reports.rows import Row, table


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One method: its assessments, one per seed, and what the sentinel said of each."""

    assessed: tuple[Assessment, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.assessed[0].method

    def dice(self) -> list[float]:
        """Mean over test cases against the reference, per seed; empty without a reference."""
        return [float(each.dice.mean()) for each in self.assessed if each.dice is not None]

    def annotator_dice(self) -> list[list[float]]:
        """Mean over the test cases that an annotator drew, (seeds, A); NaN for one who drew none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN, as it should be
            return [np.nanmean(each.annotator_dice, axis=0).tolist() for each in self.assessed]

    def confusion_error(self) -> list[float]:
        """RMSE of the confusions per seed; empty without a reference."""
        return [error for each in self.assessed if (error := each.confusion_error) is not None]

    def ranking(self) -> list[float]:
        """Spearman's correlation of estimated and true reliability of the annotators, per seed that has one."""
        return [found for each in self.assessed if (found := each.ranking) is not None]

    def reliability(self) -> list[list[float]]:
        """(seeds, A) as the method sees it."""
        return [each.estimated_reliability.tolist() for each in self.assessed]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and ± standard deviation where there are several.

    >>> spread([0.9]), spread([0.9, 0.92]), spread([])
    ('0.900', '0.910 ± 0.014', '-')
    """
    if not len(values) or np.isnan(values).all():
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def methods_table(contenders: Sequence[Contender]) -> str:
    """Dice against the reference and the annotators, error of the confusions, and whether the annotators are ranked as they should."""
    lines = [
        [
            each.method,
            spread(each.dice()),
            spread([float(np.nanmean(row)) for row in each.annotator_dice()]),
            spread(each.confusion_error()),
            spread(each.ranking()),
            "learnt" if each.assessed[0].learnt else "counted",
        ]
        for each in contenders
    ]
    header = ["method", "Dice, reference", "Dice, annotators", "confusion RMSE", "rank correlation", "confusions"]
    return table(header, lines)


def annotators_table(cohort: Cohort, contenders: Sequence[Contender]) -> str:
    """Per annotator: Dice with each method, and reliability (mean over classes of P(writes j | truth j)), estimated and true."""
    methods = [each.method for each in contenders]
    header = [
        "annotator",
        *[f"Dice: {name}" for name in methods],
        *[f"reliability: {name}" for name in methods],
        "true",
    ]
    true = contenders[0].assessed[0].true_reliability
    lines = []
    for index, name in enumerate(cohort.annotators):
        dice = [spread([seed[index] for seed in each.annotator_dice()]) for each in contenders]
        reliability = [spread([seed[index] for seed in each.reliability()]) for each in contenders]
        lines.append([name, *dice, *reliability, "-" if true is None else f"{true[index]:.3f}"])
    return table(header, lines)


WORDS = {"AnnotatorConfusion": "annotator confusion", "MajorityVote": "majority vote", "MeanLabels": "mean labels"}


def contest_rows(contenders: Sequence[Contender]) -> list[Row]:
    """The last contender against the first, against the reference or, without one, against the annotators."""
    first, last = contenders[0], contenders[-1]
    names = " / ".join(WORDS.get(name, name) for name in dict.fromkeys((last.method, first.method)))
    pairs: list[tuple[str, list[float], list[float], str]] = [
        ("Dice", last.dice(), first.dice(), "clearly > 1"),
        ("confusion RMSE", last.confusion_error(), first.confusion_error(), "< 1"),
        ("rank correlation of the annotators", last.ranking(), first.ranking(), "1"),
        ("mean Dice with the annotators", _with_annotators(last), _with_annotators(first), ""),
    ]
    return [
        Row(
            row=f"{names}, {what}",
            value=float(np.mean(ours)),
            reference=float(np.mean(theirs)) if last is not first and theirs else None,
            goal=goal,
        )
        for what, ours, theirs, goal in pairs
        if ours
    ]


def _with_annotators(contender: Contender) -> list[float]:
    return [float(np.nanmean(seed)) for seed in contender.annotator_dice()]
