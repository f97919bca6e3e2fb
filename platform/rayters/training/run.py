"""A run: one training, completely described by one frozen value that survives JSON."""

import dataclasses
import warnings
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, Union

from casebook import Cohort
from rayters import gaze, methods
from rayters.gaze import FixedGaze, Gaze
from rayters.methods import AnnotatorConfusion, Method
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.patches.sampling import Sampling
from rayters.patches.view import Request, View
from rayters.training.augmentation import Augmentation
from rayters.training.schedule import Schedule

if TYPE_CHECKING:
    AnyMethod = Method
    AnyGaze = Gaze
else:  # the command line offers exactly what the two tuples hold
    AnyMethod = Union[methods.ALL]  # noqa: UP007
    AnyGaze = Union[gaze.ALL]  # noqa: UP007


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides what a training computes.

    Raises:
        ValueError: when a number is out of its range.
    """

    method: AnyMethod = field(default_factory=AnnotatorConfusion)  # whom the network believes
    gaze: AnyGaze = field(default_factory=FixedGaze)  # what the network gets to see
    network: UNet = field(default_factory=UNet)
    sampling: Sampling = field(default_factory=Sampling)
    augmentation: Augmentation = field(default_factory=Augmentation)
    patch_px: tuple[int, ...] = ()  # size of the target; () chooses by the cohort
    downsampling: int = 1  # level-0 pixels per pixel of the target
    epochs: int = 10
    batch_size: int = 8  # over all workers together
    learning_rate: float = 3e-3  # the peak of the schedule
    schedule: Schedule = "one_cycle"
    weight_decay: float = 1e-5
    gradient_clip: float = 1.0  # largest norm of a gradient; 0 does not clip
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 where a GPU has it
    accumulate: int = 1  # parts of a batch, one in memory at a time; methods that count or draw by batch see the parts
    average: float = 0.0  # decay of a moving average of the weights, which is then validated and saved; 0: none
    compile: bool = False  # torch.compile: slower to start, faster on a GPU
    patience: int = 0  # stop after so many epochs without a lower validation loss, and keep the best; 0: never
    restarts: int = 2  # new starts allowed when the sentinel says that a run went astray
    seed: int = 0
    force: bool = False  # learn per annotator although the cohort says that an id is not one person

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "downsampling", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if not 0 <= self.average < 1 or self.patience < 0:
            raise ValueError("average must be in [0, 1), patience not negative")
        if self.learning_rate <= 0 or self.restarts < 0 or self.gradient_clip < 0:
            raise ValueError("learning_rate must be positive, restarts and gradient_clip not negative")

    def request(self, annotators: tuple[str, ...]) -> Request:
        """What one patch of this run consists of."""
        covered = tuple(side * self.downsampling for side in self.patch_px)
        views = tuple(_view(self.patch_px, covered, scale) for scale in self.gaze.scales())
        return Request(views=views, target=_view(self.patch_px, covered, 1.0), annotators=annotators)


def _view(size_px: tuple[int, ...], target_px0: tuple[int, ...], scale: float) -> View:
    return View(size_px=size_px, field_of_view_px0=tuple(round(side * scale) for side in target_px0))


def resolve(run: Run, cohort: Cohort) -> Run:
    """The run with its patch size filled in: at most 128 px (2-D) or 16 x 64 x 64 (3-D), at most the smallest case, a multiple of 4.

    Warns of a soft Dice term under a gaze that mixes views.

    Raises:
        ValueError: when the patch has not one side per axis of the cohort, or the method learns about annotators whose ids are not
            one person each.
    """
    axes = len(cohort.cases[0].shape)
    if run.patch_px and len(run.patch_px) != axes:
        raise ValueError(f"patch_px={run.patch_px} has {len(run.patch_px)} sides, the cohort's cases have {axes} axes")
    if run.method.needs_identity and not cohort.stable_annotators and not run.force:
        raise ValueError(
            f"{type(run.method).__name__} learns the reliability of each annotator, but in cohort '{cohort.name}' an annotator's id is "
            "not the same person in every case (stable_annotators=False): what it would learn belongs to nobody. "
            "Use an anonymous method (majority-vote, mean-labels), or --force to treat an id as a person all the same."
        )
    dice = getattr(run.method, "dice", 0.0)
    if len(run.gaze.scales()) > 1 and dice > 0:
        warnings.warn(
            f"{type(run.gaze).__name__} sees with several fields of view, and {type(run.method).__name__} has a soft Dice term "
            f"(dice={dice}), which rewards a view that cannot know for drawing everything: better is --method.dice 0",
            stacklevel=2,
        )
    return dataclasses.replace(run, patch_px=run.patch_px or _default_patch(cohort, axes))


def _default_patch(cohort: Cohort, axes: int) -> tuple[int, ...]:
    limits = (128, 128) if axes == 2 else (16, 64, 64)
    smallest = tuple(min(row.shape[axis] for row in cohort.cases) for axis in range(axes))
    return tuple(min(limit, max(4, side // 4 * 4)) for limit, side in zip(limits, smallest, strict=True))


def task_of(run: Run, cohort: Cohort) -> Task:
    """The shape of the problem that a resolved run poses on a cohort; intensities are those of its training cases."""
    train = cohort.split("train").cases
    channels = range(train[0].channels)
    return Task(
        channels=train[0].channels,
        classes=len(cohort.classes),
        annotators=len(cohort.annotators),
        patch_px=run.patch_px,
        view_scales=run.gaze.scales(),
        mean=tuple(sum(row.mean[c] for row in train) / len(train) for c in channels),
        std=tuple(max(sum(row.std[c] for row in train) / len(train), 1e-6) for c in channels),
    )


def to_json(value: Any) -> Any:
    """A run, or any part of one, as JSON values; a dataclass carries its name under "is"."""
    if is_dataclass(value):
        return {"is": type(value).__name__} | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def from_json(value: Any) -> Any:
    """The inverse of ``to_json``.

    Raises:
        ValueError: for a name that no part of a run has; the message lists those that exist.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    known = {part.__name__: part for part in (Run, UNet, Sampling, Augmentation, Task, *methods.ALL, *gaze.ALL)}
    if value.get("is") not in known:
        raise ValueError(f"'{value.get('is')}' is no part of a run; known are {', '.join(sorted(known))}")
    return known[value["is"]](**{name: from_json(item) for name, item in value.items() if name != "is"})
