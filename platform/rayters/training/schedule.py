"""The learning rate as a pure function of progress, so that a resumed training needs to remember nothing of it."""

from math import cos, pi
from typing import Literal

Schedule = Literal["one_cycle", "cosine", "poly", "constant"]

ONE_CYCLE_RISE, WARM_UP = 0.3, 0.05


def learning_rate(schedule: Schedule, peak: float, progress: float) -> float:
    """The rate at ``progress`` in [0, 1].

    one_cycle: up from a tenth over the first 30 %, then down to a hundredth along a cosine (Smith & Topin 2019).
    cosine:    up from 0 over the first 5 %, then down to 0 along a cosine (Loshchilov & Hutter 2017).
    poly:      peak x (1 - progress)^0.9, as nnU-Net.

    >>> [round(learning_rate("one_cycle", 1.0, at), 3) for at in (0, 0.3, 1)]
    [0.1, 1.0, 0.01]
    """
    match schedule:
        case "one_cycle":
            if progress < ONE_CYCLE_RISE:
                return peak * (0.1 + 0.9 * progress / ONE_CYCLE_RISE)
            return peak * (0.01 + 0.99 * _falling((progress - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE)))
        case "cosine":
            return peak * min(progress / WARM_UP, _falling(max(0.0, progress - WARM_UP) / (1 - WARM_UP)))
        case "poly":
            return float(peak * (1 - progress) ** 0.9)
        case "constant":
            return peak


def _falling(progress: float) -> float:
    return 0.5 + 0.5 * cos(pi * progress)
