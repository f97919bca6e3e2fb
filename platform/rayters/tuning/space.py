"""The space of a search: any set of methods and gazes at once, read from the metadata of their fields.

It is conditional: a candidate carries the parameters of *its* method and *its* gaze, and no others.

    method ------- AnnotatorConfusion ---- trace_weight, warm_up, level, ...
       '---------- RobustLoss ------------ loss_name, power, ...
    gaze --------- FixedGaze ------------- field_of_view
    downsampling - 1 | 2 | 4

A candidate is a flat dict of JSON values, {"method": "RobustLoss", "RobustLoss.power": 0.7, ..., "downsampling": 2}: it can be written to
a file, compared, and shown in a table.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rayters import gaze, methods
from rayters.training.run import Run

Candidate = Mapping[str, Any]
Part = type[Any]


class Trial(Protocol):
    """Who draws a value; an Optuna trial is one."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """In [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One parameter: a range, or options."""

    name: str
    default: Any
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    options: tuple[Any, ...] = ()

    def draw(self, trial: Trial) -> Any:
        """A value of this dimension."""
        if self.options:
            return trial.suggest_categorical(self.name, self.options)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether the value lies in the dimension."""
        return value in self.options if self.options else self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Space:
    """Which methods, gazes and resolutions are searched together.

    only: names of the fields that are searched; () for all that have a range. downsampling: level-0 pixels per pixel of the target.

    Raises:
        ValueError: when there is no method or no gaze, or ``only`` names a field that none of them searches.
    """

    methods: tuple[Part, ...] = methods.ALL
    gazes: tuple[Part, ...] = (gaze.FixedGaze,)
    only: tuple[str, ...] = ()
    downsampling: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not self.methods or not self.gazes or not self.downsampling:
            raise ValueError("a search needs at least one method, one gaze and one resolution")
        known = {each.name for part in (*self.methods, *self.gazes) for each in _fields(part)}
        if strange := sorted(set(self.only) - known):
            raise ValueError(f"no method or gaze of this search has a range for {strange}; they have: {sorted(known)}")

    def dimensions(self, part: Part) -> tuple[Dimension, ...]:
        """What is searched of one method or gaze; names carry the part, since two methods may share the name of a field."""
        return tuple(
            Dimension(name=f"{part.__name__}.{each.name}", default=each.default, **each.metadata)
            for each in _fields(part)
            if not self.only or each.name in self.only
        )

    def draw(self, trial: Trial) -> dict[str, Any]:
        """A candidate, every value drawn by ``trial``; only what is undecided is drawn."""
        method = _choose(trial, "method", self.methods)
        look = _choose(trial, "gaze", self.gazes)
        resolution = self.downsampling[0]
        if len(self.downsampling) > 1:
            resolution = trial.suggest_categorical("downsampling", self.downsampling)
        drawn = {each.name: each.draw(trial) for part in (method, look) for each in self.dimensions(part)}
        return {"method": method.__name__, "gaze": look.__name__, "downsampling": resolution} | drawn

    def default(self, method: Part) -> dict[str, Any]:
        """A method as it comes, with the first gaze as it comes, at the first resolution."""
        parts = (method, self.gazes[0])
        drawn = {each.name: each.default for part in parts for each in self.dimensions(part)}
        first = {"method": method.__name__, "gaze": self.gazes[0].__name__, "downsampling": self.downsampling[0]}
        return first | drawn

    def defaults(self) -> list[dict[str, Any]]:
        """Every method as it comes: what a search has to beat."""
        return [self.default(method) for method in self.methods]

    def run(self, candidate: Candidate, base: Run) -> Run:
        """The training that a candidate stands for: ``base`` with another method, gaze and resolution."""
        parts = {part.__name__: part for part in (*self.methods, *self.gazes)}
        return dataclasses.replace(
            base,
            method=_build(parts[candidate["method"]], candidate),
            gaze=_build(parts[candidate["gaze"]], candidate),
            downsampling=candidate["downsampling"],
        )


def named(names: Sequence[Part] = (methods.AnnotatorConfusion, methods.MajorityVote, methods.MeanLabels)) -> Space:
    """The ready search: trace regularisation x its warm-up x level of the confusion x field of view x resolution, across methods.

    Methods without a confusion take part with the last two.
    """
    wanted = ("trace_weight", "warm_up", "level", "field_of_view")
    known = {each.name for part in (*names, gaze.FixedGaze) for each in _fields(part)}
    return Space(
        methods=tuple(names),
        gazes=(gaze.FixedGaze,),
        only=tuple(name for name in wanted if name in known),
        downsampling=(1, 2, 4),
    )


def parts_of(names: Sequence[str], known: Sequence[Part]) -> tuple[Part, ...]:
    """Methods or gazes by the name of their class, however it is hyphenated; () for all.

    >>> [part.__name__ for part in parts_of(["majority-vote", "TLoss"], methods.ALL)]
    ['MajorityVote', 'TLoss']

    Raises:
        ValueError: for a name that none of them has.
    """
    by_name = {_plain(part.__name__): part for part in known}
    if strange := [name for name in names if _plain(name) not in by_name]:
        raise ValueError(f"unknown: {', '.join(strange)}; known are {', '.join(part.__name__ for part in known)}")
    return tuple(by_name[_plain(name)] for name in names) or tuple(known)


def fitting(parts: Sequence[Part], *, stable_annotators: bool) -> tuple[Part, ...]:
    """Those that do without persons, where the same name need not be the same person; all of them where it is."""
    return tuple(part for part in parts if stable_annotators or not part().needs_identity)


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _fields(part: Part) -> list[dataclasses.Field[Any]]:
    return [each for each in dataclasses.fields(part) if {"low", "options"} & each.metadata.keys()]


def _choose(trial: Trial, name: str, parts: tuple[Part, ...]) -> Part:
    """A part by its name, which is all that a file can hold."""
    if len(parts) == 1:
        return parts[0]
    chosen = trial.suggest_categorical(name, [part.__name__ for part in parts])
    return next(part for part in parts if part.__name__ == chosen)


def _build(part: Part, candidate: Candidate) -> Any:
    given = {name.split(".")[1]: value for name, value in candidate.items() if name.split(".")[0] == part.__name__}
    return part(**given)
