"""Confusion heads: from the features of a backbone to what each annotator writes for each true class.

Shapes: B batch, A annotators, K classes, F features, N pixels (flattened; 1 where a confusion holds for all of them).

A head returns *scores* (B, A, K, K, N), [i, j] for writing i where the truth is j; a softmax over i makes columns that sum to one.

| level    | scores come from                                     | numbers per annotator |
| -------- | ---------------------------------------------------- | --------------------- |
| global   | a parameter                                          | K^2                   |
| image    | the mean of the features over the patch              | K^2 per patch         |
| pixel    | the features of each pixel, one hidden layer         | K^2 per pixel         |
| low_rank | log(U V^T + s I), U and V (K, rank) from each pixel  | 2 K rank + 1 per pixel |

Source: Zhang et al., Disentangling Human Error from the Ground Truth, NeurIPS 2020, section 3 (pixel, low rank; the identity is in
the released code only: without it a rank-1 confusion ignores the truth); image and global: Lopez-Perez et al., CMIG 2024.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Level = Literal["global", "image", "pixel", "low_rank"]
DIAGONAL_AT_START = 0.95  # near the identity: at first an annotator is believed


def build_head(level: Level, *, features: int, annotators: int, classes: int, hidden: int, rank: int) -> nn.Module:
    """A module (B, F, N) -> scores (B, A, K, K, N or 1)."""
    if level == "global":
        return GlobalHead(annotators, classes)
    if level == "low_rank":
        return LowRankHead(features, annotators, classes, hidden=hidden, rank=rank)
    return PixelHead(features, annotators, classes, hidden=hidden, pooled=level == "image")


def log_confusion(scores: Tensor, *, dominant: bool) -> Tensor:
    """Scores (B, A, K, K, N) -> log P(writes i | truth j), sums to one over i.

    dominant: mixes in the identity by half, so that every annotator is right at least half of the time on each class.
    """
    if not dominant:
        return scores.log_softmax(2)
    identity = torch.eye(scores.shape[2], device=scores.device, dtype=scores.dtype).unsqueeze(-1)
    return (0.5 * identity + 0.5 * scores.softmax(2)).clamp_min(1e-8).log()


def near_identity(classes: int) -> Tensor:
    """Scores (K, K) whose softmax over i has ``DIAGONAL_AT_START`` on the diagonal."""
    rest = (1 - DIAGONAL_AT_START) / (classes - 1)
    return torch.full((classes, classes), math.log(rest)).fill_diagonal_(math.log(DIAGONAL_AT_START))


class GlobalHead(nn.Module):
    """One confusion per annotator for the whole cohort."""

    def __init__(self, annotators: int, classes: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(near_identity(classes).expand(annotators, -1, -1).clone())

    def forward(self, features: Tensor) -> Tensor:
        """(B, F, N) -> (B, A, K, K, 1)."""
        return self.scores.unsqueeze(-1).expand(features.shape[0], -1, -1, -1, -1)


class PixelHead(nn.Module):
    """One hidden layer per pixel, or per patch where the features are pooled."""

    def __init__(self, features: int, annotators: int, classes: int, *, hidden: int, pooled: bool) -> None:
        super().__init__()
        self.shape, self.pooled = (annotators, classes, classes), pooled
        self.hidden = nn.Conv1d(features, hidden, 1)
        self.scores = nn.Conv1d(hidden, annotators * classes**2, 1)
        nn.init.normal_(self.scores.weight, std=0.01)
        with torch.no_grad():
            bias: Tensor = self.scores.bias  # type: ignore[assignment]
            bias.copy_(near_identity(classes).expand(annotators, -1, -1).reshape(-1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F, N) -> (B, A, K, K, N), or (B, A, K, K, 1) where pooled."""
        features = features.mean(2, keepdim=True) if self.pooled else features
        scores: Tensor = self.scores(functional.leaky_relu(self.hidden(features), 0.01))
        return scores.view(features.shape[0], *self.shape, -1)


class LowRankHead(nn.Module):
    """Positive factors U, V (K, rank) and a positive s per annotator and pixel."""

    def __init__(self, features: int, annotators: int, classes: int, *, hidden: int, rank: int) -> None:
        super().__init__()
        self.annotators, self.classes, self.rank = annotators, classes, rank
        self.hidden = nn.Conv1d(features, hidden, 1)
        self.factors = nn.Conv1d(hidden, annotators * (2 * classes * rank + 1), 1)
        nn.init.normal_(self.factors.weight, std=0.01)
        with torch.no_grad():
            bias: Tensor = self.factors.bias  # type: ignore[assignment]
            start = torch.zeros(annotators, 2 * classes * rank + 1)
            uniform = math.log(2) ** 2 * rank  # softplus(0)^2 summed over the rank: every entry of U V^T
            start[:, -1] = classes * uniform * (DIAGONAL_AT_START / (1 - DIAGONAL_AT_START))
            bias.copy_(start.reshape(-1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, F, N) -> (B, A, K, K, N)."""
        batch, size = features.shape[0], self.classes * self.rank
        raw: Tensor = self.factors(functional.leaky_relu(self.hidden(features), 0.01))
        positive = functional.softplus(raw).view(batch, self.annotators, 2 * size + 1, -1)
        sides = positive[:, :, : 2 * size].reshape(batch, self.annotators, 2, self.classes, self.rank, -1)
        left, right, scale = sides[:, :, 0], sides[:, :, 1], positive[:, :, 2 * size :]
        product = torch.einsum("bairn,bajrn->baijn", left, right)
        identity = torch.eye(self.classes, device=features.device, dtype=product.dtype).unsqueeze(-1)
        return (product + scale.unsqueeze(3) * identity).clamp_min(1e-8).log()
