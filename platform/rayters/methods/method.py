"""The promise of a method: whom the network believes when annotators disagree.

Shapes: B batch, A annotators, K classes, C channels, V views, S the spatial axes (two or three trailing dimensions).

A method is a frozen dataclass whose fields are its hyper-parameters. It builds its net around an *eye* (a gaze with its backbone),
turns the net's outputs and the annotators' labels into a loss, and the outputs into a posterior. It never sees a device or a seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from rayters.networks.search_range import choice as choice  # a method declares its ranges with these
from rayters.networks.search_range import tunable as tunable
from rayters.networks.task import Task

Outputs = dict[str, Tensor]
"""What a net returns: always "logits" (B, K, *S) of the true class; what else is between the net and its method."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss that can still be told apart by patch, which a learned gaze needs.

    per_patch: (B,) what is minimised is its mean.
    parts:     detached scalars to log, by name.
    """

    per_patch: Tensor
    parts: Mapping[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The scalar to minimise."""
        return self.per_patch.mean()


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a net believes.

    posterior: (B, K, *S) probabilities of the true class, sum to 1 over K.
    confusion: (B, A, K, K, *S), (B, A, K, K) or (A, K, K): P(annotator writes i | truth j), sums to 1 over i, the first K; None where
               a method does not estimate it.
    """

    posterior: Tensor
    confusion: Tensor | None = None


Eye = Callable[[], nn.Module]
"""Makes one gaze with its backbone: views (B, V, C, *S) -> {"logits": (B, K, *S), "features": (B, F, *S), ...}."""


class Method(Protocol):
    """One published idea. Adding one is one file and one line in ``methods.ALL``."""

    @property
    def needs_identity(self) -> bool:
        """True when something is learnt about each annotator, so that an id must be one person over the whole cohort."""

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """The net; its ``forward(views, labels=None)`` takes (B, V, C, *S) floats and returns ``Outputs``."""

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """labels: (B, A, *S) int64 in [0, K) or IGNORE; progress: fraction of the training that is done, in [0, 1]."""

    def predict(self, outputs: Outputs) -> Prediction:
        """What the net believes; deterministic."""

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Called after every optimiser step; most methods do nothing here."""
