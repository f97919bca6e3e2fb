"""Majority vote: believe what most annotators wrote, pixel by pixel. The baseline of every multi-annotator paper ('mode')."""

from dataclasses import dataclass

from torch import Tensor, nn

from rayters.methods.method import Eye, Loss, Outputs, Prediction, tunable
from rayters.methods.plain import PlainNet, dice_and_entropy
from rayters.methods.targets import fused_target
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class MajorityVote:
    """Cross-entropy and soft Dice against the class that most of the annotators who looked wrote; ties go to the lowest class."""

    dice: float = tunable(1.0, low=0.0, high=2.0)  # weight of soft Dice; without it background drowns a small structure

    @property
    def needs_identity(self) -> bool:
        """A vote is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Just the eye."""
        del task
        return PlainNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Cross-entropy in nats, plus ``dice`` times one minus soft Dice."""
        del progress
        return dice_and_entropy(outputs["logits"], fused_target(labels, outputs["logits"].shape[1], "vote"), self.dice)

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""
