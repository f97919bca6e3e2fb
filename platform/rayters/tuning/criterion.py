"""What a search chooses by: agreement with the annotators' own labels of the validation split. The reference is never read here.

Every candidate is judged on the pixels of level 0, whatever the resolution at which it was trained: coarse labels are easier to hit, and a
search over resolutions that let each be judged on its own grid would choose the coarsest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from casebook import IGNORE, CaseRow, Cohort, open_case
from rayters.inference.maps import most_probable
from rayters.inference.whole import see_case
from rayters.metrics.calibration import Calibration, calibration
from rayters.metrics.overlap import dice
from rayters.training.model import Model

Labels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A model beside what somebody drew.

    dice: case -> mean over foreground classes, then over those who looked. ece: expected calibration error over all of their pixels.
    """

    dice: dict[str, float]
    ece: float

    @property
    def mean_dice(self) -> float:
        """Over cases; NaN without one."""
        return float(np.mean(list(self.dice.values()))) if self.dice else float("nan")


def noisy_agreement(model: Model, cohort: Cohort) -> Agreement:
    """With the annotators. One case at a time is in memory, at level 0."""
    return _agreement(model, replace(cohort, reference=None), model.annotators)


def reference_agreement(model: Model, cohort: Cohort) -> Agreement | None:
    """With the reference, to be reported and nothing else; None without one."""
    if cohort.reference is None:
        return None
    return _agreement(model, replace(cohort, reference=None), (cohort.reference,))


def _agreement(model: Model, cohort: Cohort, layers: Sequence[str]) -> Agreement:
    overlap: dict[str, float] = {}
    total: Calibration | None = None
    for row in cohort.cases:
        drawn = [layer for layer in _read(row, layers) if (layer != IGNORE).any()]
        if not drawn:
            continue
        posterior = at_level_0(see_case(model, cohort, row).posterior, row.shape, model.run.downsampling)
        predicted, classes = most_probable(posterior), len(model.classes)
        overlap[row.case] = float(np.mean([dice(predicted, layer, classes=classes).mean() for layer in drawn]))
        for layer in drawn:
            found = calibration(posterior, layer)
            total = found if total is None else total + found
    return Agreement(dice=overlap, ece=total.ece if total else float("nan"))


def _read(row: CaseRow, layers: Sequence[str]) -> Labels:
    """(layers, *S) at level 0; IGNORE where somebody did not look."""
    return open_case(row.url).read_labels(layers, 0, (0,) * len(row.shape), row.shape)


def at_level_0(posterior: Floats, shape: tuple[int, ...], downsampling: int) -> Floats:
    """(K, *coarse) -> (K, *shape), linear between the centres of pixels; the sum over K stays 1."""
    if downsampling == 1:
        return posterior
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    covered = tuple(side * downsampling for side in posterior.shape[1:])  # the last coarse pixel may jut out
    fine = functional.interpolate(torch.from_numpy(posterior)[None], size=covered, mode=mode, align_corners=False)
    return np.asarray(fine[0].numpy())[:, *(slice(side) for side in shape)]
