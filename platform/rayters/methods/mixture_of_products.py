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


def posterior_of_truth(labels: Tensor, confusion: Tensor, prior: Tensor) -> Tensor:
    """The E step: (B, K, *S), sums to 1 over K, and to 0 where nobody looked."""
    patches, classes = len(labels), prior.shape[1]
    patch = torch.arange(patches, device=labels.device).view(-1, *(1,) * (labels.ndim - 2))
    log_confusion = confusion.clamp_min(FLOOR).log().expand(patches, *confusion.shape[1:])
    shape = (patches, *(1,) * (labels.ndim - 2), classes)
    log_joint = prior.clamp_min(FLOOR).log().expand(patches, classes).reshape(shape)
    for a in range(labels.shape[1]):
        seen = labels[:, a] != IGNORE
        written = labels[:, a].where(seen, torch.zeros_like(labels[:, a]))
        log_joint = log_joint + log_confusion[:, a][patch, written] * seen.unsqueeze(-1)
    looked = (labels != IGNORE).any(1, keepdim=True)
    return log_joint.softmax(-1).movedim(-1, 1) * looked


def written_where(labels: Tensor, truth: Tensor) -> Tensor:
    """The M step's counts: how many pixels annotator a wrote i at, weighted by truth (B, K, *S): (B, A, K, K), axes (i, j)."""
    flat = truth.flatten(2)
    counts = []
    for a in range(labels.shape[1]):
        seen = labels[:, a] != IGNORE
        written = labels[:, a].where(seen, torch.zeros_like(labels[:, a]))
        one_hot = (
            (functional.one_hot(written, truth.shape[1]) * seen.unsqueeze(-1)).flatten(1, -2).to(truth.dtype)
        )  # (B, S, K)
        counts.append(torch.einsum("bsi,bjs->bij", one_hot, flat))
    return torch.stack(counts, dim=1)


def columns_to_one(counts: Tensor, otherwise: Tensor) -> Tensor:
    """(..., K, K) counts -> confusions, columns sum to 1; ``otherwise`` in a column without counts."""
    total = counts.sum(-2, keepdim=True)
    return (counts / total.clamp_min(1e-12)).where(total > 1e-6, otherwise)


def reliable(classes: int, reliability: float) -> Tensor:
    """The confusion (K, K) of one who is right with this probability and errs alike to all other classes."""
    error = (1 - reliability) / max(classes - 1, 1)
    return torch.full((classes, classes), error).fill_diagonal_(reliability)
