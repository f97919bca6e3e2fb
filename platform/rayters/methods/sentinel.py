"""The sentinel: did this training go astray, and could it have succeeded at all? No clean label is looked at.

Learning the segmentation and the annotators' confusions together has wrong solutions that fit as well as the right one: classes
swapped, or one annotator's style taken for the truth. The noisy likelihood does not tell (methods log, docs/experiments.md); agreement
with the vote that trust weighs, the *opinion*, does. And some cohorts cannot be solved: where the *average* annotator writes another
class more often than the right one, no method can know. That is asked only of a net that agrees with the opinion: of one that swapped
the classes every annotator is wrong.

Where no image has two annotators, the opinion is what the net says that the others would have written, and agrees with it whatever it
believes. There another contradiction tells: the net draws like one annotator, while it is another whom the others bear out.

Shapes: A annotators, K classes, B batch, S the spatial axes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from casebook.labels import IGNORE

ASTRAY_BELOW = 0.6  # Dice with the opinion; measured: .9 where it works, .0 swapped, .4-.58 for one annotator's style
CAUTIOUS_FROM = 0.7  # expected foreground; an undertrained net knows how much there is and not where ...
HEDGES_BELOW = 0.8  # ... so that it draws less than it expects; a net that is sure draws all of it
ADOPTED_FROM = 0.05  # ahead; measured: .11 where a style was taken for the truth and the right one was trusted
TELLS_FROM = 0.4


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the sentinel says of a net; ``why`` is a sentence for people, with the numbers."""

    state: Literal["fine", "undertrained", "astray", "not identifiable"]
    why: str


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a net stands towards the annotators' common opinion, and where they stand themselves.

    agreement: Dice of the two foregrounds; 1 when neither has any.
    drawn:     size of the net's foreground / size of the opinion's; 1 when the opinion has none.
    expected:  sum of the net's probabilities of foreground / size of the opinion's; 1 when the opinion has none. A net that knows
               the frequency of the classes and nothing else expects 1 and draws 0; one that is sure of a blank annotator expects 0.
    dominance: by how much the average annotator's right answer beats the most common wrong one, for the worst class, in [-1, 1], as the
               net sees it.
    ahead:     by how much the net's Dice with the annotator whom it resembles most exceeds that with the most trusted one; 0 if that is
               the same, or nobody is trusted.
    """

    agreement: float
    drawn: float
    expected: float
    dominance: float
    ahead: float = 0.0


def tally(posterior: Tensor, opinion: Tensor, labels: Tensor) -> Tensor:
    """(5 + A K K,) float64: 2 x the shared foreground, both foregrounds together, the net's own, what it expects, the opinion's, and how
    often each annotator writes i where the net draws j.

    Add them up over batches and workers; ``standing`` reads the sum. posterior: (B, K, *S); opinion: (B, *S), labels: (B, A, *S) int64 or
    IGNORE.
    """
    seen = opinion != IGNORE
    predicted = posterior.argmax(1)
    own, expected = ((predicted > 0) & seen).sum(), ((1 - posterior[:, 0]) * seen).sum()
    sizes = torch.stack([own.double(), expected.detach().double(), ((opinion > 0) & seen).sum().double()])
    return torch.cat([overlap(predicted, opinion), sizes, written(labels, predicted, posterior.shape[1]).flatten()])


def standing(tallies: Tensor, classes: int, trust: Tensor | None = None) -> Standing:
    """What summed tallies say. tallies: (5 + A K K,). trust: (A,), how much each annotator is borne out by the others; None: unknown."""
    twice, sizes, own, expected, foreground = tallies[:5].tolist()
    counts = tallies[5:].view(-1, classes, classes)
    alike = resemblance(counts)
    return Standing(
        agreement=twice / sizes if sizes else 1.0,
        drawn=own / foreground if foreground else 1.0,
        expected=expected / foreground if foreground else 1.0,
        dominance=dominance(counts),
        ahead=0.0 if trust is None else float(alike.max() - alike[trust.argmax()]),
    )


def overlap(predicted: Tensor, target: Tensor) -> Tensor:
    """(2,): twice the foreground pixels of equal class, and the size of both foregrounds.

    predicted, target: (B, *S) int64; where the target is IGNORE nothing counts.
    """
    seen = target != IGNORE
    same = ((predicted == target) & (target > 0) & seen).sum()
    return torch.stack([2 * same, ((predicted > 0) & seen).sum() + ((target > 0) & seen).sum()]).double()


def written(labels: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How often each annotator writes i where j is held to be true: (A, K, K) float64, from labels (B, A, *S) and truth (B, *S)."""
    counts = []
    for label in labels.unbind(1):
        looked = label != IGNORE
        counts.append(torch.bincount(label[looked] * classes + truth[looked], minlength=classes**2))
    return torch.stack(counts).view(-1, classes, classes).double()


def resemblance(counts: Tensor) -> Tensor:
    """Dice of each annotator's foreground with the net's, (A,), over what that annotator looked at; 0 where neither drew.

    counts: (A, K, K) how often a writes i where the net draws j.
    """
    same = counts.diagonal(dim1=1, dim2=2)[:, 1:].sum(1)
    drawn = counts[:, 1:].sum((1, 2)) + counts[:, :, 1:].sum((1, 2))
    return 2 * same / drawn.clamp(min=1)


def dominance(counts: Tensor) -> float:
    """The condition of the paper's theorem, on columns: right answers less the most common wrong one, of the average annotator, for the
    worst class. It must be positive.

    counts: (A, K, K) how often a writes i where the truth is held to be j. An annotator who saw nothing of a class does not count for
    it, and neither does a class that nobody saw; 1 where there is none left.
    """
    margins = []
    for j in range(counts.shape[2]):
        column = counts[:, :, j]
        looked = column.sum(1) > 0
        if looked.any():
            shares = (column[looked] / column[looked].sum(1, keepdim=True)).mean(0)
            wrong = torch.cat([shares[:j], shares[j + 1 :]])
            margins.append(float(shares[j] - wrong.max()))
    return min(margins, default=1.0)


def judge(stands: Standing, *, explains: bool, progress: float = 1.0) -> Verdict:
    """The verdict on a net.

    An undertrained net is cautious: it draws less than it expects. One that went astray is sure of something else, which only a net can
    be that explains the annotators by their confusions. Starting again helps the second only.

    explains:  whether the method learns confusions; else it has no style to adopt.
    progress:  fraction of the training that is done; before ``TELLS_FROM`` every net is fine, since an untrained one agrees with nobody.
    """
    dice = f"a Dice of {stands.agreement:.2f}"
    if progress < TELLS_FROM:
        return Verdict(state="fine", why=f"too early to tell at {progress:.0%} of the training")
    cautious = stands.expected >= CAUTIOUS_FROM and stands.drawn < HEDGES_BELOW * stands.expected
    if stands.agreement < ASTRAY_BELOW and (cautious or not explains):
        return Verdict(
            state="undertrained",
            why=f"on cases not trained on, the segmentation draws {stands.drawn:.0%} of what the annotators drew, and agrees with "
            f"their vote to {dice}. More cases, a longer training (--epochs), augmentation or a larger net may help.",
        )
    if stands.agreement < ASTRAY_BELOW:
        return Verdict(
            state="astray",
            why=f"the segmentation agrees with the annotators' weighted vote to {dice} only, under {ASTRAY_BELOW}: it "
            "has swapped classes or taken one annotator's style for the truth. Train again from another seed.",
        )
    if explains and stands.ahead > ADOPTED_FROM:
        return Verdict(
            state="astray",
            why=f"the segmentation is like one annotator's, by a Dice of {stands.ahead:.2f} more than like that of the annotator whom the "
            "others bear out most: it has taken a style for the truth. Train longer (--epochs), or again from another seed.",
        )
    if explains and stands.dominance <= 0:
        return Verdict(
            state="not identifiable",
            why=f"on average annotators write a wrong class more often than the right one (by {-stands.dominance:.2f}): nothing in these "
            "labels says which of them is the truth. Add an annotator who is right more often than not, or exclude one who is not.",
        )
    return Verdict(state="fine", why=f"{dice} with the annotators' weighted vote")
