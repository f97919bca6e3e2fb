"""Dawid-Skene: the truth and every annotator's confusion from what they wrote, by expectation-maximisation.

Shapes: A annotators, K classes, P patterns, S spatial axes.

A pixel matters only through its *pattern*, the A labels written at it, and a cohort has few different ones (5
annotators, 2 classes: at most 3^5 with IGNORE). So the pixels of a whole cohort are counted once, EM runs on the
counts, and costs nothing. Histograms add up, which is how a cluster computes them.

Source: Dawid and Skene, Maximum likelihood estimation of observer error-rates using the EM algorithm, Applied
Statistics 28, 1979.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from casebook.labels import IGNORE
from rayters.annotators.consensus import Consensus

Labels = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """A sparse histogram: patterns (P, A) uint8, each once, in lexicographic order; counts (P,) int64."""

    patterns: Labels
    counts: NDArray[np.int64]

    def __add__(self, other: "Patterns") -> "Patterns":
        return _collect(np.concatenate([self.patterns, other.patterns]), np.concatenate([self.counts, other.counts]))


@dataclass(frozen=True, kw_only=True)
class DawidSkene:
    """What EM found.

    prior:     (K,) share of each true class.
    confusion: (A, K, K) P(annotator writes i | truth j), sums to 1 over i; an annotator who drew nothing keeps the
               start.
    log_likelihood: per iteration, in nats, over all counted pixels; never falls.
    """

    prior: Floats
    confusion: Floats
    log_likelihood: tuple[float, ...]

    def posterior(self, patterns: Labels) -> Floats:
        """P(truth | what was written): (P, A) -> (P, K), sums to 1 over K."""
        joint = _log_joint(patterns, self)
        return np.exp(joint - _log_evidence(joint))

    def fuse(self, layers: Labels) -> Consensus:
        """The truth of one case, layers (A, *S), in the light of this model."""
        found, index = count_patterns(layers), _pattern_index(layers)
        seen = (found.patterns != IGNORE).any(axis=1)
        posterior = self.posterior(found.patterns)
        chosen = np.where(seen, posterior.argmax(axis=1), IGNORE).astype(np.uint8)
        soft = (posterior * seen[:, None]).astype(np.float32).T
        shape = layers.shape[1:]
        return Consensus(
            layer=chosen[index].reshape(shape), posterior=soft[:, index].reshape(-1, *shape), confusion=self.confusion
        )


def count_patterns(layers: Labels) -> Patterns:
    """The histogram of one case: layers (A, *S)."""
    flat = layers.reshape(len(layers), -1).T
    return _collect(flat, np.ones(len(flat), dtype=np.int64))


def add_patterns(histograms: Iterable[Patterns]) -> Patterns:
    """The histogram of a cohort from those of its cases."""
    parts = list(histograms)
    return _collect(np.concatenate([h.patterns for h in parts]), np.concatenate([h.counts for h in parts]))


def dawid_skene(
    layers: Labels | Patterns,
    *,
    classes: int,
    prior: Floats | None = None,
    iterations: int = 200,
    tolerance: float = 1e-9,
    reliability: float = 0.9,
) -> DawidSkene:
    """EM until the mean log-likelihood per pixel gains less than ``tolerance`` nats.

    It starts from annotators who are right with probability ``reliability`` and a uniform prior: the labels of most
    annotators must carry more truth than error, or the solution with the classes swapped is found instead. Pixels
    nobody looked at do not count. A ``prior`` (K,) that is given stays fixed, as STAPLE wants it; otherwise it is
    learnt.
    """
    histogram = _seen(layers if isinstance(layers, Patterns) else count_patterns(layers))
    annotators = histogram.patterns.shape[1]
    error = (1 - reliability) / max(classes - 1, 1)
    start = np.where(np.eye(classes, dtype=bool), reliability, error)
    model = DawidSkene(
        prior=np.full(classes, 1 / classes) if prior is None else prior,
        confusion=np.repeat(start[None], annotators, axis=0),
        log_likelihood=(),
    )
    total = max(int(histogram.counts.sum()), 1)
    for _ in range(iterations):
        model = _step(histogram, model, learn_prior=prior is None)
        history = model.log_likelihood
        if len(history) > 1 and history[-1] - history[-2] < tolerance * total:
            break
    return model


def _step(histogram: Patterns, model: DawidSkene, *, learn_prior: bool) -> DawidSkene:
    """One E step and one M step."""
    joint = _log_joint(histogram.patterns, model)
    evidence = _log_evidence(joint)
    weight = np.exp(joint - evidence) * histogram.counts[:, None]  # (P, K) pixels of each pattern, by true class
    classes = len(model.prior)
    confusion = model.confusion.copy()
    for a, written in enumerate(histogram.patterns.T):
        counts = np.stack([weight[written == i].sum(axis=0) for i in range(classes)])  # (i, j)
        pixels = counts.sum(axis=0)
        confusion[a] = np.where(pixels > 0, counts / np.where(pixels > 0, pixels, 1), confusion[a])
    share = weight.sum(axis=0) / max(weight.sum(), 1e-300) if learn_prior else model.prior
    likelihood = float((evidence[:, 0] * histogram.counts).sum())
    return DawidSkene(prior=share, confusion=confusion, log_likelihood=(*model.log_likelihood, likelihood))


def _log_joint(patterns: Labels, model: DawidSkene) -> Floats:
    """log P(truth j, what was written): (P, K). Clipped at 1e-12: EM may drive a confusion to 0, another case may then
    write it.
    """
    total = np.repeat(np.log(model.prior.clip(1e-12))[None], len(patterns), axis=0)
    log_confusion = np.log(model.confusion.clip(1e-12))
    for a, written in enumerate(patterns.T):
        looked = written != IGNORE
        total[looked] += log_confusion[a][written[looked]]
    return total


def _log_evidence(joint: Floats) -> Floats:
    """logsumexp over K, kept as (P, 1)."""
    top = joint.max(axis=1, keepdims=True)
    summed: Floats = top + np.log(np.exp(joint - top).sum(axis=1, keepdims=True))
    return summed


def _collect(rows: Labels, counts: NDArray[np.int64]) -> Patterns:
    """Equal rows become one."""
    patterns, index = np.unique(_as_keys(rows), return_inverse=True)
    summed = np.bincount(index.ravel(), weights=counts, minlength=len(patterns))
    return Patterns(patterns=_as_rows(patterns, rows.shape[1]), counts=summed.round().astype(np.int64))


def _pattern_index(layers: Labels) -> NDArray[np.intp]:
    """Which row of ``count_patterns(layers).patterns`` each pixel is."""
    return np.unique(_as_keys(layers.reshape(len(layers), -1).T), return_inverse=True)[1].ravel()


def _as_keys(rows: Labels) -> NDArray[np.void]:
    """Rows as single opaque values: np.unique sorts them 20 times faster than rows."""
    rows = np.ascontiguousarray(rows)
    return rows.view(np.dtype((np.void, rows.shape[1]))).ravel()


def _as_rows(keys: NDArray[np.void], annotators: int) -> Labels:
    return np.frombuffer(keys.tobytes(), dtype=np.uint8).reshape(-1, annotators)


def _seen(histogram: Patterns) -> Patterns:
    """Without the pattern of the pixels that nobody looked at."""
    keep = (histogram.patterns != IGNORE).any(axis=1)
    return Patterns(patterns=histogram.patterns[keep], counts=histogram.counts[keep])
