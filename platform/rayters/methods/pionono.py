"""Pionono: every annotator is a Gaussian in a latent space; its mean is the style, its variance the inconsistency.

Source: Schmidt et al., Probabilistic modeling of inter- and intra-observer variability in medical image segmentation, ICCV 2023
(arXiv 2307.11397). Theirs has an extra latent for a gold annotator; where nobody is gold, the truth is the mean over the annotators.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayters.methods.latent import LatentHead, draw, features_of, kl_of_gaussians
from rayters.methods.method import Eye, Loss, Outputs, Prediction, tunable
from rayters.methods.random_annotator import drawn_annotator, drawn_labels
from rayters.methods.targets import hard_cross_entropy, mean_labels, soft_cross_entropy
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class Pionono:
    """Cross-entropy of one annotator per patch and step at a draw from that annotator's Gaussian, plus the Gaussians' KL to a prior.

    gold: position of an annotator whose style is the truth; -1 takes the mean over all annotators.
    """

    latent: int = 8
    prior_deviation: float = 2.0
    first_deviation: float = 1.0  # of every Gaussian (the paper starts at 8, its features have another scale)
    kl_weight: float = tunable(0.0005, low=0.00005, high=0.05, log=True)
    gold: int = -1

    @property
    def needs_identity(self) -> bool:
        """A Gaussian belongs to a person."""
        return True

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """The eye, the Gaussians and the head that puts z in.

        Raises:
            ValueError: when there is no such gold annotator.
        """
        if self.gold >= task.annotators:
            raise ValueError(
                f"gold={self.gold}, but the cohort has {task.annotators} annotators, counted from 0; -1 for none"
            )
        return PersonalNet(task, eye, latent=self.latent, first_deviation=self.first_deviation, gold=self.gold)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Nats; at validation, where nobody is drawn, the expected cross-entropy of the truth."""
        del progress
        logits = outputs["logits"]
        if "draw" not in outputs:
            per_patch = soft_cross_entropy(logits, mean_labels(labels, logits.shape[1]))
            return Loss(per_patch=per_patch, parts={"cross_entropy": per_patch.detach().mean()})
        mean, log_variance = outputs["style_mean"], outputs["style_log_variance"]
        wide = torch.full_like(mean, 2 * math.log(self.prior_deviation))
        apart = kl_of_gaussians(mean, log_variance, torch.zeros_like(mean), wide).sum()
        written = hard_cross_entropy(logits, drawn_labels(labels, outputs["draw"]))
        parts = {"cross_entropy": written.detach().mean(), "kl": apart.detach()}
        return Loss(per_patch=written + self.kl_weight * apart, parts=parts)

    def predict(self, outputs: Outputs) -> Prediction:
        """The gold style, or the mean over all styles."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""


class PersonalNet(nn.Module):
    """Outputs: "logits" of the truth, or in training of the drawn annotator; "style_mean", "style_log_variance" (A, Z); "draw" (B, A)."""

    def __init__(self, task: Task, eye: Eye, *, latent: int, first_deviation: float, gold: int) -> None:
        super().__init__()
        self.eye, self.gold = eye(), gold
        features = features_of(self.eye, task)
        self.head = LatentHead(axes=task.axes, features=features, latent=latent, classes=task.classes)
        self.style_mean = nn.Parameter(torch.randn(task.annotators, latent))
        self.style_log_variance = nn.Parameter(torch.full((task.annotators, latent), 2 * math.log(first_deviation)))

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats; labels: (B, A, *S) or None."""
        outputs: Outputs = self.eye(views)
        if labels is None or not self.training:
            return {**outputs, "logits": self._truth(outputs)}
        scores = torch.rand(labels.shape[:2], device=labels.device)
        who = drawn_annotator(labels, scores)
        latent = draw(self.style_mean[who], self.style_log_variance[who])
        style = {"style_mean": self.style_mean, "style_log_variance": self.style_log_variance, "draw": scores}
        return {**outputs, **style, "logits": self._logits(outputs, latent)}

    @torch.no_grad()
    def as_annotator(self, views: Tensor, annotator: int) -> Tensor:
        """What this annotator would write, on average: (B, K, *S) probabilities."""
        outputs: Outputs = self.eye(views)
        return self._logits(outputs, self.style_mean[annotator].expand(len(views), -1)).softmax(1)

    def _truth(self, outputs: Outputs) -> Tensor:
        """Logarithm of the posterior: of the gold style, or of the mean over styles."""
        who = [self.gold] if self.gold >= 0 else range(len(self.style_mean))
        batch = len(outputs["logits"])
        styles = [self._logits(outputs, self.style_mean[a].expand(batch, -1)).log_softmax(1) for a in who]
        return torch.stack(styles).logsumexp(0) - math.log(len(styles))

    def _logits(self, outputs: Outputs, latent: Tensor) -> Tensor:
        corrected: Tensor = outputs["logits"] + self.head(outputs["features"], latent)
        return corrected
