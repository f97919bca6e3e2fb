"""Known confusions: the oracle of the papers' tables. What each annotator does is given; only the segmentation is learnt.

Source: Zhang et al., NeurIPS 2020, 'oracle'. One confusion per annotator for the whole cohort, so it bounds what *global* confusions
can do; errors that depend on the place are beyond it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayters.methods.confusion_loss import shared_truth_nll
from rayters.methods.method import Eye, Loss, Outputs, Prediction
from rayters.methods.plain import PlainNet
from rayters.networks.task import Task

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class KnownConfusion:
    """The likelihood of the labels under given confusions and one truth that the annotators share.

    confusions: one K x K matrix per annotator, [i][j] = P(writes i | truth j), columns sum to one; () takes everybody for perfect.
    smoothing:  share of a uniform confusion mixed in, so that nothing is impossible.

    Raises:
        ValueError: when a column does not sum to one.
    """

    confusions: tuple[Matrix, ...] = ()
    smoothing: float = 0.01

    def __post_init__(self) -> None:
        for a, matrix in enumerate(self.confusions):
            sums = torch.tensor(matrix).sum(0)
            if not torch.allclose(sums, torch.ones(()), atol=1e-3):
                raise ValueError(
                    f"columns of annotator {a}'s confusion sum to {sums.tolist()}, not to one: [i][j] is P(i | truth j)"
                )

    @property
    def needs_identity(self) -> bool:
        """A confusion belongs to a person."""
        return True

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Just the eye."""
        if self.confusions and len(self.confusions) != task.annotators:
            raise ValueError(f"{len(self.confusions)} confusions for {task.annotators} annotators: give one each")
        return PlainNet(eye)

    def loss(self, outputs: Outputs, labels: Tensor, progress: float) -> Loss:
        """Negative log-likelihood in nats per label."""
        del progress
        logits = outputs["logits"].flatten(2)
        log_a = self._known(labels.shape[1], logits).log()[None, ..., None].expand(len(logits), -1, -1, -1, 1)
        per_patch = shared_truth_nll(logits.log_softmax(1), log_a, labels.flatten(2))
        return Loss(per_patch=per_patch, parts={"likelihood": per_patch.detach().mean()})

    def predict(self, outputs: Outputs) -> Prediction:
        """The softmax of the logits, and the confusions as given."""
        known = torch.tensor(self.confusions, device=outputs["logits"].device) if self.confusions else None
        return Prediction(posterior=outputs["logits"].softmax(1), confusion=known)

    def after_step(self, net: nn.Module, progress: float) -> None:
        """Nothing to do."""

    def _known(self, annotators: int, like: Tensor) -> Tensor:
        """(A, K, K), strictly positive."""
        classes = like.shape[1]
        perfect = torch.eye(classes).expand(annotators, -1, -1)
        known = (torch.tensor(self.confusions) if self.confusions else perfect).to(like)
        return (1 - self.smoothing) * known + self.smoothing / classes
