"""The shape of a segmentation problem, as a net must know it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """How many channels, classes, annotators and views, and how large the target is."""

    channels: int
    classes: int  # K, background included
    annotators: int  # A, in the cohort's order
    patch_px: tuple[int, ...]  # size of the target, (y, x) or (z, y, x)
    view_scales: tuple[float, ...] = (1.0,)  # field of view of each view / that of the target
    mean: tuple[float, ...] = (0.0,)  # intensity of the training cases, per channel, in stored units
    std: tuple[float, ...] = (1.0,)

    @property
    def axes(self) -> int:
        """2 for pictures and slides, 3 for volumes."""
        return len(self.patch_px)
