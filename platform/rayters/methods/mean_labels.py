"""Mean labels: believe the share of annotators that wrote each class, as a soft target (the papers' 'mean')."""

from dataclasses import dataclass

from torch import Tensor, nn

from rayters.methods.method import Eye, Loss, Outputs, Prediction
from rayters.methods.plain import PlainNet
from rayters.methods.targets import mean_labels, soft_cross_entropy
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class MeanLabels:
    """Cross-entropy against the share of annotators, of those who looked, that wrote each class: calibrated to their disagreement."""

    @property
    def needs_identity(self) -> bool:
        """A mean is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Just the eye."""
        del task
        return PlainNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Cross-entropy in nats."""
        del progress
        logits = outputs["logits"]
        per_patch = soft_cross_entropy(logits, mean_labels(labels, logits.shape[1]))
        return Loss(per_patch=per_patch, parts={"cross_entropy": per_patch.detach().mean()})

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""
