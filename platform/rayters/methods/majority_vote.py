"""Majority vote: believe what most annotators wrote, pixel by pixel. The baseline of every multi-annotator paper ('mode')."""

from dataclasses import dataclass

from torch import Tensor, nn

from rayters.methods.method import Eye, Loss, Outputs, Prediction
from rayters.methods.plain import PlainNet
from rayters.methods.targets import hard_cross_entropy, majority
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class MajorityVote:
    """Cross-entropy against the class that most of the annotators who looked wrote; ties go to the lowest class."""

    @property
    def needs_identity(self) -> bool:
        """A vote is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Just the eye."""
        del task
        return PlainNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Cross-entropy in nats."""
        del progress
        logits = outputs["logits"]
        per_patch = hard_cross_entropy(logits, majority(labels, logits.shape[1]))
        return Loss(per_patch=per_patch, parts={"cross_entropy": per_patch.detach().mean()})

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""
