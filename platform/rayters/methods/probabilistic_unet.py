"""Probabilistic U-Net: one latent per picture says which of the plausible segmentations is meant.

Source: Kohl et al., A probabilistic U-Net for segmentation of ambiguous images, NeurIPS 2018.

    training    posterior encoder (picture, one annotator's labels) -> z -.
                prior encoder (picture)          <- KL -'                 +-> logits of that annotator's labels
    evaluation  prior encoder -> its mean (predict) or draws (sample) ----'

The latent corrects the eye's own logits, so that these stay what an average annotator would write.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayters.gaze.gaze import align
from rayters.methods.latent import GaussianEncoder, LatentHead, draw, features_of, kl_of_gaussians
from rayters.methods.method import Eye, Loss, Outputs, Prediction, tunable
from rayters.methods.random_annotator import drawn_labels
from rayters.methods.targets import hard_cross_entropy, mean_labels, soft_cross_entropy, votes
from rayters.networks.task import Task


@dataclass(frozen=True, kw_only=True)
class ProbabilisticUNet:
    """Cross-entropy against an annotator drawn anew for each patch and step, plus ``kl_weight`` times the KL of the two encoders.

    latent: dimensions of z. width: features of the encoders' first layer.
    """

    latent: int = 6
    width: int = 16
    kl_weight: float = tunable(0.01, low=0.0001, high=1.0, log=True)  # per pixel's CE; the paper's: 1 / pixels

    @property
    def needs_identity(self) -> bool:
        """Annotators are samples, not persons."""
        return False

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """The eye, the two encoders and the head that puts z in."""
        return ProbabilisticNet(task, eye, latent=self.latent, width=self.width)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Nats; at validation, without a posterior, the expected cross-entropy at the prior's mean."""
        del progress
        logits = outputs["logits"]
        if "posterior_mean" not in outputs:
            per_patch = soft_cross_entropy(logits, mean_labels(labels, logits.shape[1]))
            return Loss(per_patch=per_patch, parts={"cross_entropy": per_patch.detach().mean()})
        gaussians = [outputs[f"{of}_{what}"] for of in ("posterior", "prior") for what in ("mean", "log_variance")]
        apart = kl_of_gaussians(gaussians[0], gaussians[1], gaussians[2], gaussians[3])
        written = hard_cross_entropy(logits, drawn_labels(labels, outputs["draw"]))
        parts = {"cross_entropy": written.detach().mean(), "kl": apart.detach().mean()}
        return Loss(per_patch=written + self.kl_weight * apart, parts=parts)

    def predict(self, outputs: Outputs) -> Prediction:
        """At the prior's mean."""
        return Prediction(posterior=outputs["logits"].softmax(1))

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""


class ProbabilisticNet(nn.Module):
    """Outputs: "logits", "prior_mean", "prior_log_variance" (B, Z); in training "posterior_..." and "draw" (B, A) too."""

    def __init__(self, task: Task, eye: Eye, *, latent: int, width: int) -> None:
        super().__init__()
        self.eye, self.task = eye(), task
        sizes = {"axes": task.axes, "width": width, "latent": latent}
        self.prior = GaussianEncoder(channels=task.channels, **sizes)
        self.posterior = GaussianEncoder(channels=task.channels + task.classes, **sizes)
        features = features_of(self.eye, task)
        self.head = LatentHead(axes=task.axes, features=features, latent=latent, classes=task.classes)

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats; labels: (B, A, *S) or None."""
        outputs: Outputs = self.eye(views)
        picture = align(views[:, 0], self.task.view_scales[0])
        mean, log_variance = self.prior(picture)
        outputs = {**outputs, "prior_mean": mean, "prior_log_variance": log_variance}
        if labels is None or not self.training:
            return {**outputs, "logits": self._logits(outputs, mean)}
        scores = torch.rand(labels.shape[:2], device=labels.device)
        written = votes(drawn_labels(labels, scores).unsqueeze(1), self.task.classes)
        mean, log_variance = self.posterior(torch.cat([picture, written.to(picture.dtype)], dim=1))
        latent = {"posterior_mean": mean, "posterior_log_variance": log_variance, "draw": scores}
        return {**outputs, **latent, "logits": self._logits(outputs, draw(mean, log_variance))}

    @torch.no_grad()
    def sample(self, views: Tensor, count: int) -> Tensor:
        """``count`` plausible posteriors of each patch, (B, count, K, *S), from torch's generator."""
        outputs = self(views)
        drawn = [draw(outputs["prior_mean"], outputs["prior_log_variance"]) for _ in range(count)]
        base: Outputs = self.eye(views)
        return torch.stack([self._logits(base, z).softmax(1) for z in drawn], dim=1)

    def _logits(self, outputs: Outputs, latent: Tensor) -> Tensor:
        corrected: Tensor = outputs["logits"] + self.head(outputs["features"], latent)
        return corrected
