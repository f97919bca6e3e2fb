"""The losses of annotator confusion, as pure functions in log space.

Shapes: B batch, A annotators, K classes, N pixels or voxels (flattened). Everywhere
    log_posterior: (B, K, N)       log P(truth j)
    log_confusion: (B, A, K, K, N) log P(annotator writes i | truth j), [i, j]; N may be 1: one confusion for all pixels
    labels:        (B, A, N)       int64 in [0, K) or IGNORE; what is IGNORE does not count, in no sum and in no mean
and every result is (B,), in nats or as a fraction, the mean over the labels that a patch has, 0 for a patch without labels.

Annotators are taken one by one: nothing of the size of all confusions is made besides the confusions themselves, nor, since they are
unbound rather than indexed, in the backward pass.

Source: Zhang et al., NeurIPS 2020, equations 3 and 4. The released code passes probabilities to a cross-entropy that takes logits; its
loss does not reach 0 for a perfect network, and its trace weights do not carry over to this one.
"""

import torch
from torch import Tensor

from casebook.labels import IGNORE


def annotator_nll(log_posterior: Tensor, log_confusion: Tensor, labels: Tensor) -> Tensor:
    """-log sum_j P(writes what was written | j) P(j), in nats: annotators are independent even of the truth they share."""
    per_label = [
        (written_given_truth(log_a, labels[:, a]) + log_posterior).logsumexp(1)
        for a, log_a in enumerate(log_confusion.unbind(1))
    ]
    return _mean(-torch.stack(per_label, 1), labels != IGNORE)


def own_nll(log_written: Tensor, labels: Tensor) -> Tensor:
    """-log P(writes what was written), in nats, of annotators each for themselves: log_written (B, A, K, N), sums to one over K."""
    seen = labels != IGNORE
    picked = log_written.gather(2, labels.where(seen, torch.zeros_like(labels)).unsqueeze(2)).squeeze(2)
    return _mean(-picked, seen)


def shared_truth_nll(log_posterior: Tensor, log_confusion: Tensor, labels: Tensor) -> Tensor:
    """-log sum_j P(j) prod_r P(r writes what was written | j), in nats per label: the annotators share one truth.

    The likelihood of Dawid and Skene (1979) at every pixel. With one annotator it is ``annotator_nll``.
    """
    written = (labels != IGNORE).sum((1, 2)).clamp(min=1)
    return -log_joint(log_posterior, log_confusion, labels).logsumexp(1).sum(1) / written


def log_joint(log_posterior: Tensor, log_confusion: Tensor, labels: Tensor) -> Tensor:
    """log P(j) prod_r P(r writes what was written | j), (B, K, N), over those r who looked; normalised it is what their labels make of the
    posterior.
    """
    joint = log_posterior
    for a, log_a in enumerate(log_confusion.unbind(1)):
        seen = (labels[:, a] != IGNORE).unsqueeze(1)
        joint = joint + written_given_truth(log_a, labels[:, a]).where(seen, joint.new_zeros(()))
    return joint


def count_joint(log_posterior: Tensor, log_confusion: Tensor, labels: Tensor) -> Tensor:
    """How often each annotator writes i where j is true: (A, K, K), summed over patches and pixels.

    Where an annotator looked, by P(j | what was written), not by P(j): what was written tells of the truth whatever the net is unsure of,
    and the product of the two margins would draw every confusion towards chance. Elsewhere by the model.
    """
    counts = []
    for a, log_a in enumerate(log_confusion.unbind(1)):
        seen = (labels[:, a] != IGNORE).unsqueeze(1)
        believed = log_joint(log_posterior, log_a.unsqueeze(1), labels[:, a : a + 1]).softmax(1) * seen
        modelled = ((log_a + log_posterior.unsqueeze(1)).exp() * ~seen.unsqueeze(1)).sum((0, 3))
        rows = [(believed * (labels[:, a] == i).unsqueeze(1)).sum((0, 2)) for i in range(log_a.shape[1])]
        counts.append(modelled + torch.stack(rows))
    return torch.stack(counts)


def written_probability(log_posterior: Tensor, log_confusion: Tensor) -> Tensor:
    """P(annotator writes i), (B, A, K, N), sums to 1 over i: what an annotator would write, who may not have looked."""
    per_annotator = [(log_a + log_posterior.unsqueeze(1)).logsumexp(2) for log_a in log_confusion.unbind(1)]
    return torch.stack(per_annotator, 1).exp()


def believed_trace(posterior: Tensor, log_confusion: Tensor, labels: Tensor) -> Tensor:
    """sum_j P(j) P(writes j | j), a fraction: how often annotators are right about the class that is believed.

    posterior: (B, K, N), detach it, or the network lowers the trace by changing its mind. A plain trace would weigh the column of a
    rare class as much as that of the background at every pixel, where nothing was ever observed of it.
    """
    per_label = [(_diagonal(log_a).exp() * posterior).sum(1) for log_a in log_confusion.unbind(1)]
    return _mean(torch.stack(per_label, 1), labels != IGNORE)


def plain_trace(log_confusion: Tensor, labels: Tensor) -> Tensor:
    """sum_j P(writes j | j), in [0, K], as published: all columns alike."""
    per_label = [_diagonal(log_a).exp().sum(1) for log_a in log_confusion.unbind(1)]
    return _mean(torch.stack(per_label, 1), labels != IGNORE)


def inactive_pull(posterior: Tensor, log_confusion: Tensor, average: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, in nats, from an annotator's average column j to the column at each pixel, where j is *not* believed.

    The column of a class that a pixel does not have is seen by no likelihood; without a pull it wanders, and the label swap waits there.
    posterior: (B, K, N), detached. average: (A, K, K), the annotators' confusions over the pixels where j is believed, detached.
    """
    disbelief = (1 - posterior) / max(posterior.shape[1] - 1, 1)
    per_label = []
    for a, log_a in enumerate(log_confusion.unbind(1)):
        cross_entropy = -(average[a].unsqueeze(-1) * log_a).sum(1)  # (B, K, N) over j
        per_label.append((cross_entropy * disbelief).sum(1))
    return _mean(torch.stack(per_label, 1), labels != IGNORE)


def written_given_truth(log_confusion: Tensor, labels: Tensor) -> Tensor:
    """The rows that one annotator's labels pick: log_confusion (B, K, K, N or 1), labels (B, N) -> (B, K, N) over the truth j."""
    row = log_confusion[:, 0].expand(-1, -1, labels.shape[1])
    for i in range(1, log_confusion.shape[1]):  # faster, forward and backward, than a gather, for few classes
        row = torch.where((labels == i).unsqueeze(1), log_confusion[:, i], row)
    return row


def _diagonal(log_confusion: Tensor) -> Tensor:
    """(B, K, K, N) -> (B, K, N)."""
    return torch.stack([log_confusion[:, j, j] for j in range(log_confusion.shape[1])], 1)


def _mean(per_label: Tensor, seen: Tensor) -> Tensor:
    """(B, A, N) -> (B,), the mean over what was seen; 0 where nothing was."""
    per_label = per_label.expand(seen.shape).where(seen, per_label.new_zeros(()))
    return per_label.sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)
