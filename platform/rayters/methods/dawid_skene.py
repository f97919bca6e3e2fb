"""Dawid-Skene while training: one confusion per annotator over the whole cohort, and a network that learns the truth they imply.

Source: Dawid and Skene, Applied Statistics 28, 1979; in steps, as the stream brings patches: Liang and Klein, Online EM for
unsupervised models, NAACL 2009. Errors that depend on the place are beyond a global confusion: see annotator_confusion.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayters.methods.method import Eye, Loss, Outputs, Prediction, tunable
from rayters.methods.mixture_of_products import columns_to_one, posterior_of_truth, reliable, written_where
from rayters.methods.targets import soft_cross_entropy
from rayters.networks.task import Task
from rayters.networks.team_sum import team_sum

START = 0.9  # first guess of everybody's reliability


@dataclass(frozen=True, kw_only=True)
class DawidSkene:
    """Cross-entropy against the posterior of the truth given what all annotators wrote; the network is not asked.

    memory: how slowly the running counts forget; 0.97 averages over some thirty steps.
    """

    memory: float = tunable(0.97, low=0.9, high=0.999)

    @property
    def needs_identity(self) -> bool:
        """A confusion belongs to a person."""
        return True

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """The eye, and the running counts."""
        return CountingNet(task, eye, memory=self.memory)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Cross-entropy in nats."""
        del progress
        with torch.no_grad():
            truth = posterior_of_truth(labels, outputs["confusion"][None], outputs["prior"][None])
        per_patch = soft_cross_entropy(outputs["logits"], truth)
        return Loss(per_patch=per_patch, parts={"cross_entropy": per_patch.detach().mean()})

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits, and the confusions of the running counts."""
        return Prediction(posterior=outputs["logits"].softmax(1), confusion=outputs["confusion"])

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do: the forward pass counts."""


class CountingNet(nn.Module):
    """The eye's outputs, "confusion" (A, K, K) and "prior" (K,). Each training pass is one step of EM on its labels.

    The prior is read off the same counts as the confusions, so a pixel with several labels counts as often. A prior with counts of its
    own forgets its start at another pace than the confusions of an annotator who seldom looks; with one label per pixel, where nothing
    but the start says how far a label is to be believed, it then falls so low that nothing is drawn at all.
    """

    counts: Tensor  # (A, K, K) share of a step's pixels at which a writes i and j is believed, running; one per annotator at the start
    prior: Tensor  # (K,)

    def __init__(self, task: Task, eye: Eye, *, memory: float) -> None:
        super().__init__()
        self.eye, self.memory = eye(), memory
        self.register_buffer("counts", reliable(task.classes, START).repeat(task.annotators, 1, 1) / task.classes)
        self.register_buffer("prior", torch.full((task.classes,), 1 / task.classes))

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats; labels: (B, A, *S) or None."""
        if labels is not None and self.training:
            with torch.autocast(labels.device.type, enabled=False):  # bfloat16 would lose small counts
                self._count(labels)
        outputs: Outputs = self.eye(views)
        return {**outputs, "confusion": self._confusion(), "prior": self.prior}

    def _confusion(self) -> Tensor:
        guess = reliable(self.counts.shape[1], START).to(self.counts.device)
        return columns_to_one(self.counts, guess)

    @torch.no_grad()
    def _count(self, labels: Tensor) -> None:
        truth = posterior_of_truth(labels, self._confusion()[None], self.prior[None])
        counts, pixels = team_sum(written_where(labels, truth).sum(0), truth.sum())
        keep = self.memory if pixels > 0 else 1.0
        # The counts of an average step, in shares of its pixels, so that a class met rarely is remembered as rarely.
        self.counts.lerp_(counts / pixels.clamp(min=1), 1 - keep)
        believed = self.counts.sum((0, 1))
        self.prior.copy_(believed / believed.sum())
