"""Whom to trust before anything is learnt: chance-corrected agreement, and the vote that it weighs.

Shapes: A annotators, K classes, B batch, N pixels.

A plain vote counts the blank annotator, who agrees with everybody about background, as much as the careful one. Cohen's kappa takes
away what two annotators would agree on by chance: the blank one's is zero. An annotator's *centrality* is the mean kappa with the
others; the weighted vote gives each annotator centrality ** sharpness, so that it leans to the most central one without ignoring
the rest. The statistics are tables of pairs, additive over pixels, so they come out of the stream.

Two annotators who never looked at the same pixel, as with one label per image, are compared through *voices*, what the network would
write for them: what a wrote with what the voice of b says there. A network predicts one annotator better than another, a smooth style
better than a ragged one, and a poor voice makes agreement look poor; so the kappa is divided by that of the voice with b itself, which
is Spearman's correction for attenuation (The proof and measurement of association, 1904). Of a it takes what was written, carelessness
and all: the voice of a, which knows nothing of it, has no part in how central a is.
"""

import torch
from torch import Tensor

from casebook.labels import IGNORE
from rayters.methods.targets import one_hots

TIE = 1e-3  # of the weight behind the winner: trust is an estimate, and equal annotators differ by rounding
FAINT = 0.1  # kappa of a voice with its own annotator, below which nothing is made of it


def complete(labels: Tensor, voices: Tensor) -> Tensor:
    """What was written, or would have been: (B, A, K, N), one-hot where somebody looked.

    labels: (B, A, N) int64; voices: (B, A, K, N) probabilities.
    """
    written = one_hots(labels, voices.shape[2]).to(voices.dtype)
    return torch.where((labels != IGNORE).unsqueeze(2), written, voices)


def count_pairs(written: Tensor, others: Tensor) -> Tensor:
    """How often a writes i in the one while b writes k in the other: (A, K, A, K) from two (B, A, K, N)."""
    annotators, classes = written.shape[1:3]
    rows, columns = (each.movedim(0, 2).reshape(annotators * classes, -1) for each in (written, others))
    return (rows @ columns.T).reshape(annotators, classes, annotators, classes)


def kappa(pairs: Tensor) -> Tensor:
    """Cohen's kappa of each a with each b, (A, A), from (A, K, A, K) counts; 0 where chance explains all, or nothing was counted."""
    table = pairs / pairs.sum((1, 3), keepdim=True).clamp_min(1e-12)
    observed = table.diagonal(dim1=1, dim2=3).sum(-1)
    chance = torch.einsum("aib,abi->ab", table.sum(3), table.sum(1))
    counted = (pairs.sum((1, 3)) > 0) & (chance < 1 - 1e-6)
    return torch.where(counted, (observed - chance) / (1 - chance).clamp_min(1e-6), torch.zeros_like(chance))


def agreement(pairs: Tensor, heard: Tensor) -> Tensor:
    """Kappa of each a with each b, (A, A), 0 on the diagonal: of what both wrote where both looked, else of a with the voice of b.

    pairs: (A, K, A, K) how often a and b wrote i and k. heard: (A, K, A, K) how often a wrote i where the voice of b says k.
    """
    voiced = kappa(heard)
    voiced = (voiced / voiced.diagonal().clamp_min(FAINT)).clamp(max=1)
    return torch.where(pairs.sum((1, 3)) > 0, kappa(pairs), voiced).fill_diagonal_(0)


def centrality(agreements: Tensor) -> Tensor:
    """The mean agreement of each annotator with the others, (A,), negative ones counted as 0. agreements: (A, A)."""
    return agreements.clamp_min(0).sum(1) / max(len(agreements) - 1, 1)


def trust(agreements: Tensor, looked: Tensor, sharpness: float) -> Tensor:
    """The weight of each annotator in the vote, (A,), sums to 1; all alike where nobody agrees with anybody.

    looked: (A,) bool, who has written anything yet; who has not gets 0, since only the network speaks for them.
    """
    weight = centrality(agreements) ** sharpness * looked
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


def settled(votes: Tensor, *, quorum: float = 0.5) -> Tensor:
    """The winner where those who looked hold more than ``quorum`` of all trust and it is not a tie, else IGNORE: (B, N) int64.

    Of two annotators who trust each other alike, a tie that went to the lowest class would make the intersection of both the truth.
    """
    first, second = votes.topk(2, dim=1).values.unbind(1)
    decided = (votes.sum(1) > quorum) & (first - second > TIE * first)
    return torch.where(decided, winner(votes), IGNORE)
