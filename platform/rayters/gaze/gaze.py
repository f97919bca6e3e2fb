"""The promise of a gaze: what the network gets to see at a location.

Shapes: B batch, V views, C channels, K classes, F features, S the spatial axes of the target.

A gaze names the views of a patch (all concentric with the target, all of the target's pixel size) and builds an *eye*: a module that
takes the views and returns logits and features **aligned with the target**, pixel by pixel. A wide view therefore shows the target
in its centre, squeezed; the eye crops that centre out of its logits and stretches it back (Jin et al. 2020 leave this alignment to
the network to learn).
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional

from rayters.networks.task import Task

Losses = Callable[[dict[str, Tensor]], Tensor]
"""What a method makes of any outputs: their loss per patch, (B,)."""


class Network(Protocol):
    """A backbone's description: it builds a module (B, channels, *S) -> (B, width, *S)."""

    @property
    def width(self) -> int:
        """Features per pixel that the module returns."""

    def build(self, channels: int, patch_px: tuple[int, ...]) -> nn.Module:
        """A fresh module for views of ``patch_px``."""


class Gaze(Protocol):
    """One way of looking. Adding one is one file and one line in ``gaze.ALL``."""

    def scales(self) -> tuple[float, ...]:
        """The field of view of each view, as a multiple of the target's; the order is that of axis V."""

    def build(self, task: Task, network: Network) -> nn.Module:
        """An eye: ``forward(views)`` takes (B, V, C, *S) floats and returns at least logits (B, K, *S), features (B, F, *S)."""

    def added_loss(self, outputs: dict[str, Tensor], per_patch: Tensor, losses: Losses) -> Tensor:
        """What a gaze adds to the method's loss, a scalar; zero for gazes that learn nothing about where to look.

        per_patch: (B,) the method's loss of ``outputs``, detached; losses: the same of other outputs, such as those of one view alone.
        """


def align(wide: Tensor, scale: float) -> Tensor:
    """Crop the centre 1/scale of a map and stretch it to the map's own size, bilinearly (trilinearly).

    wide: (B, N, *S) on the grid of a view that covers ``scale`` times the target; returns (B, N, *S) on the target's grid.
    """
    if scale == 1.0:
        return wide
    axes = wide.ndim - 2
    theta = wide.new_zeros(wide.shape[0], axes, axes + 1)
    for axis in range(axes):
        theta[:, axis, axis] = 1.0 / scale
    grid = functional.affine_grid(theta, [*wide.shape], align_corners=False)
    return functional.grid_sample(wide, grid, mode="bilinear", padding_mode="border", align_corners=False)


def check_fields_of_view(fields_of_view: tuple[float, ...]) -> None:
    """Raises ValueError unless there are at least two fields of view, ascending, and none under 1."""
    if len(fields_of_view) < 2 or sorted(set(fields_of_view)) != list(fields_of_view) or fields_of_view[0] < 1:
        raise ValueError(
            f"fields_of_view={fields_of_view}: give two or more, ascending, each at least 1 (the target itself)"
        )
