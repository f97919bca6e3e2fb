"""Mean labels: believe the share of annotators that wrote each class, as a soft target (the papers' 'mean')."""

from dataclasses import dataclass

from torch import Tensor, nn

from rayters.methods.method import Eye, Loss, Outputs, Prediction, tunable
from rayters.methods.plain import PlainNet, dice_and_entropy
from rayters.methods.targets import mean_labels
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class MeanLabels:
    """Cross-entropy against the share of annotators, of those who looked, that wrote each class: calibrated to their disagreement."""

    dice: float = tunable(0.0, low=0.0, high=2.0)  # weight of soft Dice: helps small structures, costs calibration

    @property
    def needs_identity(self) -> bool:
        """A mean is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Just the eye."""
        del task
        return PlainNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Cross-entropy in nats, plus ``dice`` times one minus soft Dice."""
        del progress
        return dice_and_entropy(outputs["logits"], mean_labels(labels, outputs["logits"].shape[1]), self.dice)

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""
