"""STAPLE: train on a consensus that weighs annotators by how they performed on this very patch.

Source: Warfield, Zou, Wells, IEEE TMI 23(7), 2004. Computed on the fly, the patch being the image: no fused layer is needed, and an
annotator may be good here and bad there. STAPLE of whole cases: fuse first, with jobs/fuse.py.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayters.methods.method import Eye, Loss, Outputs, Prediction
from rayters.methods.mixture_of_products import columns_to_one, posterior_of_truth, reliable, written_where
from rayters.methods.plain import PlainNet
from rayters.methods.targets import mean_labels, soft_cross_entropy
from rayters.networks.task import Task

START = 0.99999  # SimpleITK's first guess


@dataclass(frozen=True, kw_only=True)
class Staple:
    """Cross-entropy against the STAPLE posterior of each patch.

    iterations: EM rounds; SimpleITK's own result is reached within 1e-3 after some 30.
    """

    iterations: int = 30

    @property
    def needs_identity(self) -> bool:
        """Performance is estimated anew for every patch."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Just the eye."""
        del task
        return PlainNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Cross-entropy in nats."""
        del progress
        logits = outputs["logits"]
        per_patch = soft_cross_entropy(logits, staple(labels, logits.shape[1], iterations=self.iterations))
        return Loss(per_patch=per_patch, parts={"cross_entropy": per_patch.detach().mean()})

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""


@torch.no_grad()
def staple(labels: Tensor, classes: int, *, iterations: int) -> Tensor:
    """The posterior of each patch: labels (B, A, *S) -> (B, K, *S), all zero where nobody looked. The prior is the mean share."""
    guess = reliable(classes, START).to(labels.device)
    confusion = guess.expand(len(labels), labels.shape[1], classes, classes)
    share = mean_labels(labels, classes).flatten(2).sum(2)
    prior = share / share.sum(1, keepdim=True).clamp(min=1)
    truth = posterior_of_truth(labels, confusion, prior)
    for _ in range(iterations):
        confusion = columns_to_one(written_where(labels, truth), guess)
        truth = posterior_of_truth(labels, confusion, prior)
    return truth
