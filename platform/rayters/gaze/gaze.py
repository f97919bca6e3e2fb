"""The promise of a gaze: what the network gets to see at a location.

Shapes: B batch, V views, C channels, K classes, F features, S the spatial axes of the target.

A gaze names the views of a patch (all concentric with the target, all of the target's pixel size) and builds an *eye*: a module that
takes the views and returns logits and features **aligned with the target**, pixel by pixel. A wide view therefore shows the target
in its centre, squeezed; the eye crops that centre out of its logits and stretches it back (Jin et al. 2020 leave this alignment to
the network to learn).
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayters.networks.task import Task

Losses = Callable[[dict[str, Tensor]], Tensor]
"""What a method makes of any outputs: their loss per patch, (B,)."""

PEER = "peer_"
"""Before the name of everything that a second eye returns, where a method builds two that learn from each other."""


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

        outputs: of one eye, or of two, see ``eyes_of``. per_patch: (B,) the method's loss of ``outputs``, detached; losses: the same of
        other outputs, such as those of one view alone.
        """


def eyes_of(outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The outputs as each eye of a net has them: its own under their names, its peer's after ``PEER``, and without gradient.

    Those of a net with one eye are the only ones.
    """
    second = {name.removeprefix(PEER): value for name, value in outputs.items() if name.startswith(PEER)}
    if not second:
        return [outputs]
    first = {name: value for name, value in outputs.items() if not name.startswith(PEER)}
    return [beside(first, second, detach=True), beside(second, first, detach=True)]


def beside(own: dict[str, Tensor], peer: dict[str, Tensor], *, detach: bool = False) -> dict[str, Tensor]:
    """The outputs of an eye and, after ``PEER``, those of its peer."""
    return own | {PEER + name: value.detach() if detach else value for name, value in peer.items()}


def align(wide: Tensor, scale: float | Tensor) -> Tensor:
    """Crop the centre 1/scale of a map and stretch it to the map's own size, bilinearly (trilinearly).

    wide: (B, N, *S) on the grid of a view that covers ``scale`` times the target, scale a number or (B,) one for each patch; returns
    (B, N, *S) on the target's grid.
    """
    if not isinstance(scale, Tensor) and scale == 1.0:
        return wide
    axes = wide.ndim - 2
    # places in float32 whatever the map's precision: bfloat16 would miss them by a quarter of a pixel of 128
    theta = wide.new_zeros(wide.shape[0], axes, axes + 1, dtype=torch.float32)
    for axis in range(axes):
        theta[:, axis, axis] = 1.0 / scale
    grid = functional.affine_grid(theta, [*wide.shape], align_corners=False)
    near = functional.grid_sample(wide.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    near = near.to(wide.dtype)
    return wide.where((scale == 1).view(-1, *(1,) * (axes + 1)), near) if isinstance(scale, Tensor) else near


def check_fields_of_view(fields_of_view: tuple[float, ...]) -> None:
    """Raises ValueError unless there are at least two fields of view, ascending, and none under 1."""
    if len(fields_of_view) < 2 or sorted(set(fields_of_view)) != list(fields_of_view) or fields_of_view[0] < 1:
        raise ValueError(
            f"fields_of_view={fields_of_view}: give two or more, ascending, each at least 1 (the target itself)"
        )
