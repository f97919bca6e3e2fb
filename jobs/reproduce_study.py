"""What the experiments of jobs/reproduce.py have in common: trials over rows, settings and seeds, and a summary of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from casebook import Cohort, open_case
from rayters.inference.maps import Maps
from rayters.inference.predict import predict_region
from rayters.inference.tiling import Tiling
from rayters.metrics.overlap import dice_per_image
from rayters.reports.rows import Row
from rayters.reports.statistics import by_group
from rayters.training.local import train_locally
from rayters.training.run import Run
from rayters.tuning.sweep import Report
from reproduce_pairs import Measured, Pair

Measure = Callable[[Mapping[str, Any], Any, Report], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """One experiment; trials already measured are re-used, so that a killed job goes on, and a longer one too."""

    only: tuple[str, ...] = ()  # rows, by key
    seeds: int = 3
    storage: str = "rayters-runs/reproduce"
    cpus: float = 1.0  # of one trial; a cluster with more runs more of them at once
    gpus: float = 0.0
    max_cpus: int | None = None  # of a Ray started here
    quick: bool = False  # the same rows, small: to see that all is well
    json: str | None = None  # write the rows that have a goal to this file
    record: str | None = None  # write all rows, spread, versions and hardware to this file, as in docs/results
    picture: str | None = None  # write a picture of the table to this file (.png, .svg)

    def hurried(self) -> "Study":
        """The same with little of everything."""
        raise NotImplementedError

    def trials(self) -> list[dict[str, Any]]:
        """Each with "row", "setting" and "seed", and all else that its result depends on."""
        raise NotImplementedError

    def data(self) -> Any:
        """What the trials share."""
        raise NotImplementedError

    @property
    def measure(self) -> Measure:
        """A trial and the data to its figures: {"dice": ..., "patients": {name: Dice}, ...}."""
        raise NotImplementedError

    def lines(self, measured: Sequence[Measured]) -> list[dict[str, Any]]:
        """The table: what ``summary`` says, and the paper's figures."""
        raise NotImplementedError

    def pairs(self) -> list[Pair]:
        """Which rows are compared image by image."""
        raise NotImplementedError

    def rows(self, lines: Sequence[dict[str, Any]]) -> list[Row]:
        """What has a goal."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """{"experiment": ..., "protocol": ...}, in words."""
        raise NotImplementedError


def summary(measured: Sequence[Measured], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """One line per setting and row: mean, sd and worst Dice over the seeds, the mean of every other figure, all Dice."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for trial, result in measured:
        groups.setdefault((trial["setting"], trial["row"]), []).append(result)
    return [
        _line(key, setting, titles[key], groups[setting, key]) for setting, key in sorted(groups, key=_order(titles))
    ]


def _order(titles: Mapping[str, str]) -> Callable[[tuple[str, str]], tuple[str, int]]:
    rank = {key: number for number, key in enumerate(titles)}
    return lambda group: (group[0], rank[group[1]])


def _line(key: str, setting: str, title: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    dice = np.array([each["dice"] for each in results])
    line = {"key": key, "title": title, "setting": setting, "seeds": len(dice), "dice": float(dice.mean())}
    line |= {"sd": float(dice.std(ddof=1)) if len(dice) > 1 else None, "worst": float(dice.min())}
    for name in sorted(set(results[0]) - {"dice", "patients"}):
        values = [each[name] for each in results if each[name] is not None]
        line[name] = float(np.mean(values)) if values else None
    return line | {"each_dice": [round(float(one), 4) for one in dice]}


def train_and_test(run: Run, cohort: Cohort) -> Iterator[tuple[str, Maps, NDArray[np.uint8]]]:
    """One training on one core; then of each test case the patient, the case as the model sees it, and the cohort's reference of it."""
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="rayters-reproduce-") as folder:
        model = train_locally(run, cohort, Path(folder))
    for row in cohort.split("test").cases:
        case = open_case(row.url)
        whole = (0,) * len(case.shapes[0]), case.shapes[0]
        seen = predict_region(model, case, tiling=Tiling(overlap=0.5, annotators=False))
        yield row.group, seen, case.read_labels((str(cohort.reference),), 0, *whole)[0]


def scores(tested: Sequence[tuple[str, Maps, NDArray[np.uint8]]]) -> dict[str, Any]:
    """{"dice": mean over test cases, "patients": {name: Dice}} of the first foreground class; cases without it do not count."""
    dice = dice_per_image([(seen.labels, truth) for _, seen, truth in tested], classes=2)[:, 0]
    return {"dice": float(np.nanmean(dice)), "patients": by_group(dice.tolist(), [group for group, _, _ in tested])}
