"""The truth shared by all annotators of a pixel: P(truth j | what was written) ~ prior_j x product over annotators of confusion[i, j].

Shapes: B batch, A annotators, K classes, S spatial axes. labels (B, A, *S) int64 or IGNORE. confusion (B, A, K, K) per patch, or
(1, A, K, K) for all: P(annotator writes i | truth j), sums to 1 over i. prior (B, K) or (1, K).

The two steps of the EM algorithm behind STAPLE (per image, fixed prior) and Dawid-Skene (over the cohort, learnt prior).
"""

import torch
from torch import Tensor
from torch.nn import functional

from casebook.labels import IGNORE

FLOOR = 1e-6  # of a probability in the E step: no annotator is trusted beyond all doubt


def written_one_hot(labels: Tensor, classes: int) -> Tensor:
    """What was written, (B, A, K, S) zeros and ones with all pixels in one axis; all zero where an annotator did not look."""
    seen = labels != IGNORE
    one_hot = functional.one_hot(labels.where(seen, torch.zeros_like(labels)), classes) * seen.unsqueeze(-1)
    return one_hot.flatten(2, -2).transpose(2, 3).float()


def e_step(written: Tensor, confusion: Tensor, prior: Tensor) -> Tensor:
    """P(truth | written) from (B, A, K, S): (B, K, S), sums to 1 over K, and to 0 where nobody looked. One matrix product."""
    log_confusion = confusion.clamp_min(FLOOR).log().expand(len(written), *confusion.shape[1:])
    log_joint = torch.bmm(log_confusion.flatten(1, 2).transpose(1, 2), written.flatten(1, 2))
    looked = written.sum((1, 2)).unsqueeze(1) > 0
    return (log_joint + prior.clamp_min(FLOOR).log().unsqueeze(2)).softmax(1) * looked


def m_step(written: Tensor, truth: Tensor) -> Tensor:
    """How many pixels annotator a wrote i at, weighted by truth (B, K, S): (B, A, K, K), axes (i, j)."""
    counts = torch.bmm(written.flatten(1, 2), truth.transpose(1, 2))
    return counts.view(*written.shape[:3], -1)


def posterior_of_truth(labels: Tensor, confusion: Tensor, prior: Tensor) -> Tensor:
    """The E step on labels (B, A, *S): (B, K, *S), sums to 1 over K, and to 0 where nobody looked."""
    return e_step(written_one_hot(labels, prior.shape[1]), confusion, prior).reshape(len(labels), -1, *labels.shape[2:])


def written_where(labels: Tensor, truth: Tensor) -> Tensor:
    """The counts of the M step from labels (B, A, *S) and truth (B, K, *S): (B, A, K, K), axes (i, j)."""
    return m_step(written_one_hot(labels, truth.shape[1]), truth.flatten(2))


def columns_to_one(counts: Tensor, otherwise: Tensor) -> Tensor:
    """(..., K, K) counts -> confusions, columns sum to 1; ``otherwise`` in a column without counts."""
    total = counts.sum(-2, keepdim=True)
    return (counts / total.clamp_min(1e-12)).where(total > 1e-6, otherwise)


def reliable(classes: int, reliability: float) -> Tensor:
    """The confusion (K, K) of one who is right with this probability and errs alike to all other classes."""
    error = (1 - reliability) / max(classes - 1, 1)
    return torch.full((classes, classes), error).fill_diagonal_(reliability)
