"""Whom to trust before anything is learnt: chance-corrected agreement, and the vote that it weighs.

Shapes: A annotators, K classes, B batch, N pixels.

A plain vote counts the blank annotator, who agrees with everybody about background, as much as the careful one. Cohen's kappa takes
away what two annotators would agree on by chance: the blank one's is zero. An annotator's *centrality* is the mean kappa with the
others; the weighted vote gives each annotator centrality ** sharpness, so that it leans to the most central one without ignoring
the rest. The statistic is a table of pairs, additive over pixels, so it comes out of the stream.

Where an annotator did not look, P(writes) of the network stands in (``complete``): pairs are then counted although no two annotators
drew on the same image, which is how one label per image is served.
"""

import torch
from torch import Tensor
from torch.nn import functional

from casebook.labels import IGNORE


def complete(labels: Tensor, written: Tensor) -> Tensor:
    """What was written, or would have been: (B, A, K, N), one-hot where somebody looked.

    labels: (B, A, N) int64; written: (B, A, K, N) probabilities.
    """
    seen = labels != IGNORE
    one_hot = functional.one_hot(labels.where(seen, torch.zeros_like(labels)), written.shape[2]).movedim(-1, 2)
    return torch.where(seen.unsqueeze(2), one_hot.to(written.dtype), written)


def count_pairs(completed: Tensor) -> Tensor:
    """How often a writes i while b writes k: (A, K, A, K) from (B, A, K, N); given the image the two are independent."""
    annotators, classes = completed.shape[1:3]
    rows = completed.movedim(0, 2).reshape(annotators * classes, -1)
    return (rows @ rows.T).reshape(annotators, classes, annotators, classes)


def kappa(pairs: Tensor) -> Tensor:
    """Cohen's kappa of every two annotators, (A, A), from (A, K, A, K) counts; 0 on the diagonal and where chance explains all."""
    table = pairs / pairs.sum((1, 3), keepdim=True).clamp_min(1e-12)
    observed = table.diagonal(dim1=1, dim2=3).sum(-1)
    margin = table.sum(3)  # (A, K, A): a's own distribution, once for each b
    chance = torch.einsum("aib,bia->ab", margin, margin)
    agreement = torch.where(
        chance < 1 - 1e-6, (observed - chance) / (1 - chance).clamp_min(1e-6), torch.zeros_like(chance)
    )
    return agreement.masked_fill(torch.eye(len(agreement), dtype=torch.bool, device=pairs.device), 0.0)


def centrality(pairs: Tensor) -> Tensor:
    """The mean kappa of each annotator with the others, (A,), negative ones counted as 0."""
    return kappa(pairs).clamp_min(0).sum(1) / max(len(pairs) - 1, 1)


def trust(pairs: Tensor, looked: Tensor, sharpness: float) -> Tensor:
    """The weight of each annotator in the vote, (A,), sums to 1; all alike where nobody agrees with anybody.

    looked: (A,) bool, who has written anything yet; who has not gets 0, since only the network speaks for them.
    """
    weight = centrality(pairs) ** sharpness * looked
    alike = torch.where(looked.any(), looked, torch.ones_like(looked)).to(weight.dtype)
    weight = torch.where(weight.sum() > 0, weight, alike)
    return weight / weight.sum()


def weighted_votes(labels: Tensor, weights: Tensor, classes: int) -> Tensor:
    """The weight behind each class: (B, K, N), sums over K to the weight of those who looked. labels: (B, A, N)."""
    votes = weights.new_zeros(labels.shape[0], classes, labels.shape[2])
    for a in range(labels.shape[1]):
        seen = labels[:, a] != IGNORE
        row = labels[:, a].where(seen, torch.zeros_like(labels[:, a])).unsqueeze(1)
        votes.scatter_add_(1, row, (weights[a] * seen).unsqueeze(1).to(votes.dtype))
    return votes


def winner(votes: Tensor) -> Tensor:
    """The class with the most weight, the lowest of equals: (B, K, N) -> (B, N) int64. An argmax that is fast for few classes."""
    best, who = votes[:, 0], torch.zeros_like(votes[:, 0], dtype=torch.int64)
    for k in range(1, votes.shape[1]):
        who = torch.where(votes[:, k] > best, k, who)
        best = torch.maximum(votes[:, k], best)
    return who


def settled(votes: Tensor) -> Tensor:
    """The winner where those who looked hold more than half of all trust, else IGNORE: (B, N) int64."""
    return torch.where(votes.sum(1) > 0.5, winner(votes), IGNORE)
