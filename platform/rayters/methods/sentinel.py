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
CAUTIOUS_BELOW = 1.1  # surprise; a net that has learnt nothing but the frequency of the classes has 1
TELLS_FROM = 0.4


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the sentinel says of a net; ``why`` is a sentence for people, with the numbers."""

    state: Literal["fine", "undertrained", "astray", "not identifiable"]
    why: str


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a net stands towards the annotators' common opinion.

    agreement: Dice of the two foregrounds; 1 when neither has any.
    drawn:     size of the net's foreground / size of the opinion's; 1 when the opinion has none.
    surprise:  cross-entropy of the opinion under the net's posterior / entropy of the opinion's class frequencies: 0 for a net that
               knows it all, 1 for one that knows the frequencies only, far above for one that is sure of something else.
    """

    agreement: float
    drawn: float
    surprise: float


def tally(posterior: Tensor, target: Tensor) -> Tensor:
    """(4 + K,) float64: 2 x the shared foreground, both foregrounds together, the net's own, nats, and pixels per class of the target.

    Add them up over batches and workers; ``standing`` reads the sum. posterior: (B, K, *S); target: (B, *S) int64 or IGNORE.
    """
    seen = target != IGNORE
    posterior = posterior.detach()
    predicted, believed = posterior.argmax(1), target.where(seen, torch.zeros_like(target))
    nats = -posterior.double().clamp(min=1e-12).log().gather(1, believed.unsqueeze(1)).squeeze(1)
    own = ((predicted > 0) & seen).sum().double()
    counts = torch.bincount(target[seen], minlength=posterior.shape[1]).double()
    return torch.cat([overlap(predicted, target), torch.stack([own, (nats * seen).sum()]), counts])


def standing(tallies: Tensor) -> Standing:
    """What summed tallies say. tallies: (4 + K,)."""
    twice, sizes, own, nats = tallies[:4].tolist()
    counts = tallies[4:]
    frequency = counts / counts.sum().clamp(min=1)
    entropy = float(-(counts * frequency.clamp(min=1e-12).log()).sum())
    foreground = float(counts[1:].sum())
    return Standing(
        agreement=twice / sizes if sizes else 1.0,
        drawn=own / foreground if foreground else 1.0,
        surprise=nats / entropy if entropy else 1.0,
    )


def overlap(predicted: Tensor, target: Tensor) -> Tensor:
    """(2,): twice the foreground pixels of equal class, and the size of both foregrounds.

    predicted, target: (B, *S) int64; where the target is IGNORE nothing counts.
    """
    seen = target != IGNORE
    same = ((predicted == target) & (target > 0) & seen).sum()
    return torch.stack([2 * same, ((predicted > 0) & seen).sum() + ((target > 0) & seen).sum()]).double()


def dominance(average: Tensor) -> float:
    """By how much the average annotator's right answer beats the most common wrong one, for the worst class; in [-1, 1].

    average: (A, K, K) P(a writes i | believed j). The condition of the paper's theorem, on columns: it must be positive.
    """
    mean = average.mean(0)
    right = mean.diagonal()
    wrong = mean.masked_fill(torch.eye(len(mean), dtype=torch.bool, device=mean.device), 0.0).amax(0)
    return float((right - wrong).min())


def judge(stands: Standing, *, average: Tensor | None, progress: float = 1.0) -> Verdict:
    """The verdict on a net.

    An undertrained net is cautious: it draws less than the annotators and knows it. One that went astray is sure of something else, which
    only a net can be that explains the annotators by their confusions. Starting again helps the second only.

    average:   (A, K, K) the estimated confusions, averaged over the cohort; None where the method has none.
    progress:  fraction of the training that is done; before ``TELLS_FROM`` every net is fine, since an untrained one agrees with nobody.
    """
    dice = f"a Dice of {stands.agreement:.2f}"
    if progress < TELLS_FROM:
        return Verdict(state="fine", why=f"too early to tell at {progress:.0%} of the training")
    cautious = stands.drawn < 1 and stands.surprise < CAUTIOUS_BELOW
    if stands.agreement < ASTRAY_BELOW and (cautious or average is None):
        return Verdict(
            state="undertrained",
            why=f"on cases not trained on, the segmentation draws {stands.drawn:.0%} of what the annotators drew, and agrees with "
            f"their vote to {dice}. More cases, a longer training (--epochs), augmentation or a larger net may help.",
        )
    if average is not None and (margin := dominance(average)) <= 0:
        return Verdict(
            state="not identifiable",
            why=f"on average annotators write a wrong class more often than the right one (by {-margin:.2f}): nothing in these labels "
            "says which of them is the truth. Add an annotator who is right more often than not, or exclude one who is not.",
        )
    if stands.agreement < ASTRAY_BELOW:
        return Verdict(
            state="astray",
            why=f"the segmentation agrees with the annotators' weighted vote to {dice} only, under {ASTRAY_BELOW}: it "
            "has swapped classes or taken one annotator's style for the truth. Train again from another seed.",
        )
    return Verdict(state="fine", why=f"{dice} with the annotators' weighted vote")
