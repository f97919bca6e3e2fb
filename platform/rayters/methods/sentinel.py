"""The sentinel: did this training go astray, and could it have succeeded at all? No clean label is looked at.

Learning the segmentation and the annotators' confusions together has wrong solutions that fit as well as the right one: classes
swapped, or one annotator's style taken for the truth. The noisy likelihood does not tell (methods log, docs/experiments.md); agreement
with the vote that trust weighs does. And some cohorts cannot be solved: where the *average* annotator writes another class more
often than the believed one, no method can know.

Shapes: A annotators, K classes, B batch, S the spatial axes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from casebook.labels import IGNORE

ASTRAY_BELOW = (
    0.6  # Dice with the weighted vote; measured: .9 where it works, .0 swapped, .4-.58 for one annotator's style
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the sentinel says of a net; ``why`` is a sentence for people, with the numbers."""

    state: Literal["fine", "astray", "not identifiable"]
    why: str


def overlap(predicted: Tensor, target: Tensor) -> Tensor:
    """(2,): twice the foreground pixels of equal class, and the size of both foregrounds; add them up over batches.

    predicted, target: (B, *S) int64; where the target is IGNORE nothing counts.
    """
    seen = target != IGNORE
    same = ((predicted == target) & (target > 0) & seen).sum()
    return torch.stack([2 * same, ((predicted > 0) & seen).sum() + ((target > 0) & seen).sum()]).double()


def style_overlap(predicted: Tensor, labels: Tensor) -> Tensor:
    """(A, 2): ``overlap`` with each annotator. labels: (B, A, *S)."""
    return torch.stack([overlap(predicted, labels[:, a]) for a in range(labels.shape[1])])


def dominance(average: Tensor) -> float:
    """By how much the average annotator's right answer beats the most common wrong one, for the worst class; in [-1, 1].

    average: (A, K, K) P(a writes i | believed j). The condition of the paper's theorem, on columns: it must be positive.
    """
    mean = average.mean(0)
    right = mean.diagonal()
    wrong = mean.masked_fill(torch.eye(len(mean), dtype=torch.bool, device=mean.device), 0.0).amax(0)
    return float((right - wrong).min())


def judge(*, agreement: float, average: Tensor | None) -> Verdict:
    """The verdict on a net.

    agreement: Dice of its foreground with the weighted vote, from summed ``overlap``.
    average:   (A, K, K) the estimated confusions, averaged over the cohort; None where the method has none.
    """
    if average is not None and (margin := dominance(average)) <= 0:
        return Verdict(
            state="not identifiable",
            why=f"on average annotators write a wrong class more often than the right one (by {-margin:.2f}): nothing in these labels "
            "says which of them is the truth. Add an annotator who is right more often than not, or exclude one who is not.",
        )
    if agreement < ASTRAY_BELOW:
        return Verdict(
            state="astray",
            why=f"the segmentation agrees with the annotators' weighted vote to a Dice of {agreement:.2f} only, under {ASTRAY_BELOW}: it "
            "has swapped classes or taken one annotator's style for the truth. Train again from another seed.",
        )
    return Verdict(state="fine", why=f"Dice of {agreement:.2f} with the annotators' weighted vote")
