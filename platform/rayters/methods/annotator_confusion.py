"""Annotator confusion: learn the truth and, together with it, what each annotator makes of it.

    views -> eye -+-> logits -> posterior p(truth j) --------------+
                  |-> features -> head -> P(a writes i | j) -------+--> P(a writes i), compared with what a wrote
                  '-> features -> voices -> P(a writes i), told apart from any truth: speaks for a where a did not look

The likelihood alone does not say which of its many solutions is the truth: a third of the published form's trainings end with swapped
classes or with one annotator's style (docs/experiments.md has the figures). Here the posterior is held to the vote weighed by trust, that
is by chance-corrected agreement (``trust``), which the net counts as it goes; the confusions are free to say who errs where. Where
annotators did not look, as with one label per image, *voices* speak for them: they learn each annotator's writing by itself, so that
who agrees with whom does not depend on what the net already takes for the truth.

Source: Zhang, Tanno, Xu, Jin, Jacob, Ciccarelli, Barkhof, Alexander, Disentangling Human Error from the Ground Truth in Segmentation of
Medical Images, NeurIPS 2020, arXiv 2007.15963. ``AS_PUBLISHED`` is their form. The pull to the weighted vote, the average that holds
inactive columns, the voices, and the trace of the believed column only are ours.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from casebook.labels import IGNORE
from rayters.methods.confusion_loss import (
    annotator_nll,
    believed_trace,
    count_joint,
    inactive_pull,
    own_nll,
    plain_trace,
    shared_truth_nll,
    written_probability,
)
from rayters.methods.method import Eye, Loss, Outputs, Prediction, choice, tunable
from rayters.methods.targets import hard_cross_entropy, one_hots
from rayters.methods.trust import agreement, complete, count_pairs, settled, trust, weighted_votes, winner
from rayters.networks.confusion import Level, build_head, log_confusion
from rayters.networks.task import Task
from rayters.networks.team_sum import team_sum

STATISTIC_PIXELS = 512  # of each patch and step
MEMORY = 0.98  # of the running statistics, per step: they forget what the net believed fifty steps ago


@dataclass(frozen=True, kw_only=True)
class AnnotatorConfusion:
    """A confusion for each annotator, learnt with the segmentation.

    Raises:
        ValueError: when a weight is negative or a fraction of the training lies outside [0, 1].
    """

    level: Level = choice("pixel", "global", "image", "pixel", "low_rank")  # where a confusion may differ
    rank: int = 1  # of level 'low_rank'
    likelihood: Literal["independent", "shared"] = choice("independent", "independent", "shared")  # given the image
    anchor: Literal["agreement", "vote", "none"] = "agreement"  # what the posterior is held to
    anchor_weight: float = tunable(1.0, low=0.1, high=10.0, log=True)
    release: float = 1.0  # fraction of the training from which the anchor fades, over ``ramp``; 1 keeps it
    sharpness: float = 8.0  # 0 is a plain vote, large believes the most central annotator alone
    listen: float = 0.2  # fraction of the training before the net speaks for annotators who did not look
    inactive_weight: float = tunable(0.1, low=0.01, high=1.0, log=True)  # of the pull on columns that are not believed
    trace_weight: float = tunable(0.1, low=0.0, high=1.0)  # the paper's lambda; of the mean over annotators
    trace_of: Literal["believed", "all"] = "believed"  # columns; the paper takes all
    warm_up: float = tunable(0.15, low=0.0, high=0.5)  # fraction of the training before the trace is lowered
    warm_up_trace: float = tunable(0.0, low=0.0, high=1.0)  # *raises* the trace in the warm-up, as the paper does
    ramp: float = 0.2  # fraction of the training over which a weight rises or fades
    dominance: Literal["free", "each"] = "free"  # 'each': everybody is right half of the time, and a blank one is not
    hidden: int = 16  # features of the confusion head's hidden layer
    pixels: int = 4096  # labels of at most so many pixels per patch enter a step, drawn at random; the anchor has all

    def __post_init__(self) -> None:
        for name in ("release", "listen", "warm_up", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a fraction of the training: give 0 to 1")
        for name in ("anchor_weight", "inactive_weight", "trace_weight", "warm_up_trace", "sharpness"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if min(self.rank, self.hidden, self.pixels) < 1:
            raise ValueError("rank, hidden and pixels must be at least 1")

    @property
    def needs_identity(self) -> bool:
        """It learns about each annotator."""
        return True

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """The eye with a confusion head on its features."""
        return ConfusionNet(self, task, eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """The likelihood of what was written, the anchor, the pull on inactive columns and the trace; in nats."""
        flat = labels.flatten(2)
        sampled = flat if "pixels" not in outputs else flat[:, :, outputs["pixels"].long()]
        log_posterior = outputs["logits"].flatten(2).log_softmax(1)
        at = log_posterior if "pixels" not in outputs else log_posterior[:, :, outputs["pixels"].long()]
        believed, log_a = at.detach().exp(), outputs["log_confusion"].flatten(4)
        likelihood = annotator_nll if self.likelihood == "independent" else shared_truth_nll
        parts = {"likelihood": likelihood(at, log_a, sampled)}
        if anchor_weight := self._anchor_at(progress):
            target = self._target(outputs, flat, sampled, progress)
            parts["anchor"] = anchor_weight * hard_cross_entropy(log_posterior, target)
        if "log_written" in outputs:
            parts["voices"] = own_nll(outputs["log_written"], sampled)
        if self.inactive_weight and self.level not in ("global", "image"):
            parts["inactive"] = self.inactive_weight * inactive_pull(believed, log_a, outputs["average"], sampled)
        if trace_weight := self._trace_at(progress):
            trace = (
                believed_trace(believed, log_a, sampled) if self.trace_of == "believed" else plain_trace(log_a, sampled)
            )
            parts["trace"] = trace_weight * trace
        return Loss(
            per_patch=sum(parts.values(), at.new_zeros(len(at))), parts={k: v.detach().mean() for k, v in parts.items()}
        )

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits; confusions (B, A, K, K, *S), or (B, A, K, K) where they do not differ by pixel."""
        confusion = outputs["log_confusion"].exp()
        if confusion.ndim > 4 and confusion.shape[4:].numel() == 1:
            confusion = confusion.flatten(3)
        return Prediction(posterior=outputs["logits"].softmax(1), confusion=confusion)

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do: the net keeps its own statistics."""

    def anchor_target(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """The weighted vote that the sentinel compares a net with: (B, *S) int64 or IGNORE. Outputs of a net in evaluation."""
        flat = labels.flatten(2)
        return self._target(outputs, flat, flat, 1.0).view(len(labels), *labels.shape[2:])

    def _anchor_at(self, progress: float) -> float:
        if self.anchor == "none":
            return 0.0
        fading = max(progress - self.release, 0.0) / max(self.ramp, 1e-9)
        return self.anchor_weight * max(1.0 - fading, 0.0)

    def _trace_at(self, progress: float) -> float:
        if progress < self.warm_up:
            return -self.warm_up_trace
        return self.trace_weight * min((progress - self.warm_up) / max(self.ramp, 1e-9), 1.0)

    def _target(self, outputs: Outputs, flat: Tensor, sampled: Tensor, progress: float) -> Tensor:
        """(B, pixels) int64 or IGNORE: where those who looked settle it; once the net has listened, its voices speak for the others."""
        classes = outputs["logits"].shape[1]
        plain = self.anchor == "vote"  # a plain vote is one of those who looked, however few
        weights = outputs["trust"] if not plain else torch.full_like(outputs["trust"], 1 / flat.shape[1])
        target = settled(weighted_votes(flat, weights, classes), quorum=0 if plain else 0.5)
        if progress < self.listen or "log_written" not in outputs or not (sampled == IGNORE).any():
            return target
        completed = complete(sampled, outputs["log_written"].detach().exp())
        spoken = winner(torch.einsum("a,bakn->bkn", weights, completed))
        spoken = spoken.where((sampled != IGNORE).any(1), torch.full_like(spoken, IGNORE))
        if "pixels" not in outputs:
            return spoken
        target[:, outputs["pixels"].long()] = spoken
        return target


AS_PUBLISHED = AnnotatorConfusion(
    anchor="none", inactive_weight=0.0, trace_weight=0.1, trace_of="all", warm_up_trace=0.1, ramp=0.0
)
"""The paper's free form: identity by maximised trace, then a minimised one. Goes astray in most seeds: docs/results/papers.md."""


class ConfusionNet(nn.Module):
    """An eye, a confusion head, and the running statistics that trust is computed from.

    In training, with labels, it returns confusions, and "log_written" (B, A, K, N), of at most ``method.pixels`` pixels, with their flat
    indices under "pixels" where those are not all; in evaluation of all. Always "trust" (A,) and "average" (A, K, K).
    """

    pairs: Tensor  # (A, K, A, K) how often a writes i while b writes k
    heard: Tensor  # (A, K, A, K) how often a writes i while the voice of b says k
    joint: Tensor  # (A, K, K) how often a writes i where j is believed, given what a wrote
    looked: Tensor  # (A,) bool, who has written anything

    def __init__(self, method: AnnotatorConfusion, task: Task, eye: Eye) -> None:
        super().__init__()
        annotators, classes = task.annotators, task.classes
        self.method, self.eye = method, eye()
        features = _features(self.eye, task)
        self.head = build_head(
            method.level,
            features=features,
            annotators=annotators,
            classes=classes,
            hidden=method.hidden,
            rank=method.rank,
        )
        # the published form has none
        self.voices = nn.Conv1d(features, annotators * classes, 1) if method.anchor != "none" else None
        self.register_buffer("pairs", torch.zeros(annotators, classes, annotators, classes))
        self.register_buffer("heard", torch.zeros(annotators, classes, annotators, classes))
        self.register_buffer("joint", torch.zeros(annotators, classes, classes))
        self.register_buffer("looked", torch.zeros(annotators, dtype=torch.bool))

    def forward(self, views: Tensor, labels: Tensor | None = None) -> Outputs:
        """views: (B, V, C, *S) floats; labels: (B, A, *S) int64, needed in training only."""
        outputs: Outputs = self.eye(views)
        features, sides = outputs["features"].flatten(2), outputs["logits"].shape[2:]
        if self.training and labels is not None:
            chosen = self._draw(features)
            drawn = features if chosen is None else features[:, :, chosen]
            outputs["log_confusion"] = self._confuse(features if self.method.level == "image" else drawn)
            outputs |= self._speak(drawn)
            self._listen(outputs, labels.flatten(2), chosen)
            outputs |= {} if chosen is None else {"pixels": chosen}
        else:
            log_a = self._confuse(features)
            outputs |= self._speak(features)
            outputs["log_confusion"] = log_a.reshape(
                *log_a.shape[:4], *(sides if log_a.shape[4] > 1 else (1,) * len(sides))
            )
        average = self.joint / self.joint.sum(1, keepdim=True).clamp_min(1e-9)
        outputs["trust"] = trust(agreement(self.pairs, self.heard), self.looked, self.method.sharpness)
        outputs["average"] = average.clamp(1e-3, 1 - 1e-3)
        return outputs

    def _confuse(self, features: Tensor) -> Tensor:
        """log P(a writes i | j), (B, A, K, K, N or 1); an image's own is a mean over all the features that it is given."""
        return log_confusion(self.head(features).float(), dominant=self.method.dominance == "each")

    def _speak(self, features: Tensor) -> Outputs:
        """{"log_written": (B, A, K, N)}, log P(a writes i), sums to one over i; empty without voices."""
        if self.voices is None:
            return {}
        scores: Tensor = self.voices(features)
        shape = (
            scores.shape[0],
            self.looked.shape[0],
            -1,
            scores.shape[2],
        )  # len() would fix the batch of an exported net
        return {"log_written": scores.view(shape).float().log_softmax(2)}

    def _draw(self, features: Tensor) -> Tensor | None:
        """Flat indices of the pixels whose labels enter this step; None takes all."""
        count = features.shape[2]
        if count <= self.method.pixels:
            return None
        return torch.randperm(count, device=features.device)[: self.method.pixels]

    @torch.no_grad()
    def _listen(self, outputs: Outputs, flat: Tensor, chosen: Tensor | None) -> None:
        """Updates the running statistics from at most ``STATISTIC_PIXELS`` pixels of each patch."""
        count = flat.shape[2] if chosen is None else len(chosen)
        step = max(count // STATISTIC_PIXELS, 1)
        pixels = torch.arange(0, count, step, device=flat.device)
        at = pixels if chosen is None else chosen[pixels]
        log_a, log_posterior = outputs["log_confusion"], outputs["logits"].flatten(2)[:, :, at].float().log_softmax(1)
        log_a = log_a if log_a.shape[4] == 1 else log_a[..., pixels]
        labels = flat[:, :, at]
        written = one_hots(labels, log_posterior.shape[1])
        if self.voices is None:
            voices = written_probability(log_posterior, log_a)
        else:
            voices = outputs["log_written"][..., pixels].exp()
        pairs, heard, joint, looked = team_sum(
            count_pairs(written, written),
            count_pairs(written, voices),
            count_joint(log_posterior, log_a, labels),
            (flat != IGNORE).any(2).any(0),
        )
        for statistic, counted in ((self.pairs, pairs), (self.heard, heard), (self.joint, joint)):
            statistic.mul_(MEMORY).add_(counted)
        self.looked |= looked


@torch.no_grad()
def _features(eye: nn.Module, task: Task) -> int:
    """How many features an eye returns per pixel: looked up, since a gaze is free to combine several backbones."""
    views = torch.zeros(1, len(task.view_scales), task.channels, *task.patch_px)
    return int(eye(views)["features"].shape[1])
