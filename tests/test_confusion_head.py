"""Confusion heads: shapes, columns, and where they start."""

import pytest
import torch

from rayters.networks.confusion import DIAGONAL_AT_START, build_head, log_confusion

LEVELS = ["global", "image", "pixel", "low_rank"]


def scores(level: str, classes: int = 3, rank: int = 2) -> torch.Tensor:
    torch.manual_seed(0)
    head = build_head(level, features=5, annotators=2, classes=classes, hidden=4, rank=rank)  # type: ignore[arg-type]
    return head(torch.randn(4, 5, 7))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dominant", [False, True])
def test_columns_sum_to_one(level: str, dominant: bool) -> None:
    confusion = log_confusion(scores(level), dominant=dominant).exp()
    assert confusion.shape == (4, 2, 3, 3, 7 if level in ("pixel", "low_rank") else 1)
    assert torch.allclose(confusion.sum(2), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("classes", [2, 4])
def test_an_annotator_is_believed_at_first(level: str, classes: int) -> None:
    diagonal = log_confusion(scores(level, classes), dominant=False).exp().diagonal(dim1=2, dim2=3)
    assert torch.allclose(diagonal, torch.tensor(DIAGONAL_AT_START), atol=0.03)


def test_a_dominant_annotator_is_right_half_of_the_time_at_least() -> None:
    against = torch.tensor([[-9.0, 9.0], [9.0, -9.0]])[None, None, ..., None]
    confusion = log_confusion(against, dominant=True).exp()
    assert confusion.diagonal(dim1=2, dim2=3).min() >= 0.5
    assert log_confusion(against, dominant=False).exp().diagonal(dim1=2, dim2=3).max() < 0.01


def test_one_confusion_for_the_cohort_is_one_and_the_same_for_every_patch() -> None:
    confusion = scores("global")
    assert torch.equal(confusion[0], confusion[1])


def test_low_rank_is_low_rank_besides_the_identity() -> None:
    confusion = scores("low_rank", classes=4, rank=1).exp()[0, 0, :, :, 0]
    beside = confusion - torch.diag(torch.linalg.eigvals(confusion).real.sort().values[:1].expand(4))
    assert torch.linalg.matrix_rank(beside, atol=1e-4) <= 2
