"""One annotator: believe a single one and ignore the others; as many networks as annotators make the papers' 'separate CNNs'."""

from dataclasses import dataclass

from torch import Tensor, nn

from rayters.methods.method import Eye, Loss, Outputs, Prediction
from rayters.methods.plain import PlainNet
from rayters.methods.targets import hard_cross_entropy
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class OneAnnotator:
    """Cross-entropy against the labels of one annotator; patches this annotator did not look at teach nothing.

    annotator: position in the cohort's order, from 0.
    """

    annotator: int = 0

    @property
    def needs_identity(self) -> bool:
        """It learns one person's style."""
        return True

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Just the eye.

        Raises:
            ValueError: when there is no such annotator.
        """
        if not 0 <= self.annotator < task.annotators:
            raise ValueError(
                f"annotator={self.annotator}, but the cohort has {task.annotators}: use 0 to {task.annotators - 1}"
            )
        return PlainNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Cross-entropy in nats."""
        del progress
        per_patch = hard_cross_entropy(outputs["logits"], labels[:, self.annotator])
        return Loss(per_patch=per_patch, parts={"cross_entropy": per_patch.detach().mean()})

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""
