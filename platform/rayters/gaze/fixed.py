"""The fixed gaze: one view of one field of view everywhere, as almost every published network looks."""

from dataclasses import dataclass

from torch import Tensor, nn

from rayters.gaze.gaze import Losses, Network, align
from rayters.networks.head import pointwise
from rayters.networks.search_range import tunable
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class FixedGaze:
    """One view that covers ``field_of_view`` times the target (1: just the target, at full detail; 4: context, at a quarter).

    Raises:
        ValueError: for a field of view under 1, since the target would not be seen whole.
    """

    field_of_view: float = tunable(1.0, low=1.0, high=4.0)

    def __post_init__(self) -> None:
        if self.field_of_view < 1:
            raise ValueError(f"field_of_view={self.field_of_view} does not cover the target: use 1 or more")

    def scales(self) -> tuple[float, ...]:
        """One view."""
        return (float(self.field_of_view),)

    def build(self, task: Task, network: Network) -> nn.Module:
        """One backbone and one head."""
        return FixedEye(task, network, scale=self.field_of_view)

    def added_loss(self, outputs: dict[str, Tensor], per_patch: Tensor, losses: Losses) -> Tensor:
        """There is nothing to choose."""
        del outputs, losses
        return per_patch.new_zeros(())


class FixedEye(nn.Module):
    """(B, 1, C, *S) -> logits (B, K, *S) and features (B, F, *S), both on the target's grid."""

    def __init__(self, task: Task, network: Network, *, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.backbone = network.build(task.channels, task.patch_px)
        self.head = pointwise(task.axes, network.width, task.classes)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        """views: (B, 1, C, *S)."""
        features = align(self.backbone(views[:, 0]), self.scale)
        return {"logits": self.head(features), "features": features}
