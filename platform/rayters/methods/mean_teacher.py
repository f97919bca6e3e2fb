"""Mean teacher with confident learning: the teacher points out labels that are probably wrong, and the student should agree with it.

Sources: Tarvainen and Valpola, NeurIPS 2017 (consistency with an averaged teacher); Northcutt et al., Confident learning, JAIR 2021, as
used on pixels by Zhang et al., MICCAI 2020, and Xu et al., MTCL, IEEE TMI 2022 (which is binary; this is not).

A pixel labelled i is flagged when the teacher believes in some j != i more than it does, on average, where j is written.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from rayters.methods.method import Eye, Loss, Outputs, Prediction, choice, tunable
from rayters.methods.robust_losses import ce, per_patch
from rayters.methods.targets import fused_target, one_hot_top
from rayters.methods.teacher import bare, follow, teacher_of
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class MeanTeacher:
    """Cross-entropy on labels that confident learning has mended, plus consistency with the teacher.

    mending: flagged pixels are "smoothed" (``smooth`` of their probability goes to the teacher's class), "replaced", or left: "none".
    """

    fusion: Literal["vote", "mean"] = choice("vote", "vote", "mean")
    mending: Literal["smoothed", "replaced", "none"] = choice("smoothed", "smoothed", "replaced", "none")
    smooth: float = tunable(0.25, low=0.0, high=1.0)
    warm_up: float = tunable(0.2, low=0.05, high=0.5)  # share of the training before the teacher is asked
    consistency: float = tunable(1.0, low=0.0, high=10.0)  # final weight of the posteriors' mean squared difference
    look_noise: float = 0.1  # of the teacher's look, in units of the normalised image
    decay: float = tunable(0.99, low=0.9, high=0.999)

    @property
    def needs_identity(self) -> bool:
        """A fusion is anonymous."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """The eye and its teacher."""
        del task
        return TaughtNet(eye, look_noise=self.look_noise)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Cross-entropy in nats, plus the weighted consistency."""
        log_p, teacher = outputs["logits"].log_softmax(1), outputs["teacher_logits"].softmax(1).detach()
        target = fused_target(labels, log_p.shape[1], self.fusion)
        flagged = torch.zeros_like(teacher[:, 0], dtype=torch.bool)
        if progress >= self.warm_up and self.mending != "none":
            flagged = probably_wrong(target, teacher)
            share = 1.0 if self.mending == "replaced" else self.smooth
            target = target.lerp(one_hot_top(teacher), share * flagged.unsqueeze(1).to(target.dtype))
        supervised = per_patch(ce(log_p, target), target)
        apart = (log_p.exp() - teacher).square().mean(1).flatten(1).mean(1)
        loss = supervised + self.consistency * math.exp(-5 * (1 - progress) ** 2) * apart
        parts = {"cross_entropy": supervised.detach().mean(), "flagged": flagged.float().mean()}
        return Loss(per_patch=loss, parts=parts)

    def predict(self, outputs: Outputs) -> Prediction:
        """What the teacher believes."""
        return Prediction(posterior=outputs["teacher_logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """The teacher follows."""
        inner = bare(net)
        assert isinstance(inner, TaughtNet)
        follow(inner.teacher, inner.eye, decay=self.decay, steps=inner.steps)


class TaughtNet(nn.Module):
    """The eye's outputs in training, with noise on what the teacher sees, the teacher's in evaluation, which is whom one hears then.

    Always "teacher_logits" (B, K, *S), without gradient.
    """

    steps: Tensor

    def __init__(self, eye: Eye, *, look_noise: float) -> None:
        super().__init__()
        self.eye = eye()
        self.teacher = teacher_of(self.eye)
        self.look_noise = look_noise
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> Self:
        """Everything but the teacher, which looks as at evaluation meanwhile: at an ensemble's average, at no view by chance."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats."""
        del labels
        with torch.no_grad():
            seen = views + self.look_noise * torch.randn_like(views) if self.training else views
            taught: Outputs = self.teacher(seen)
        outputs: Outputs = self.eye(views) if self.training else taught
        return {**outputs, "teacher_logits": taught["logits"]}


def probably_wrong(target: Tensor, teacher: Tensor) -> Tensor:
    """Pixels whose label confident learning doubts: (B, *S) bool. Thresholds are over the batch, one per class that is written."""
    has_target, label = target.sum(1) > 0, target.argmax(1)
    written = one_hot_top(target) * has_target.unsqueeze(1)
    pixels = written.transpose(0, 1).flatten(1).sum(1)
    threshold = (written * teacher).transpose(0, 1).flatten(1).sum(1) / pixels.clamp(min=1)
    threshold = threshold.masked_fill(pixels == 0, 2.0)  # never reached: nothing is known about a class nobody wrote
    enough = teacher >= threshold.view(1, -1, *(1,) * (teacher.ndim - 2))
    top = teacher.masked_fill(~enough, -1.0).max(1)
    return (top.values >= 0) & (top.indices != label) & (teacher.argmax(1) == top.indices) & has_target
