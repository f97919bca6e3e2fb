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
        ValueError: when a matrix is not square, has another K than the first, has an entry below 0 or a column that does not sum to one,
            or when smoothing is no share.
    """

    confusions: tuple[Matrix, ...] = ()
    smoothing: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing={self.smoothing} is a share: give 0 to 1")
        for a, matrix in enumerate(self.confusions):
            _check(matrix, classes=len(self.confusions[0]), whose=f"annotator {a}'s confusion")

    @property
    def needs_identity(self) -> bool:
        """A confusion belongs to a person."""
        return True

    def build(self, task: Task, eye: Eye) -> nn.Module:
        """Just the eye.

        Raises:
            ValueError: when there is not one confusion per annotator, or they are of another number of classes than the cohort has.
        """
        if self.confusions and len(self.confusions) != task.annotators:
            raise ValueError(f"{len(self.confusions)} confusions for {task.annotators} annotators: give one each")
        if self.confusions and len(self.confusions[0]) != task.classes:
            raise ValueError(f"confusions of {len(self.confusions[0])} classes for a cohort of {task.classes}")
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


def _check(matrix: Matrix, *, classes: int, whose: str) -> None:
    """ValueError unless the matrix is (classes, classes), not negative, and its columns sum to one."""
    rows = [len(row) for row in matrix]
    if not classes or rows != [classes] * classes:
        raise ValueError(f"{whose} has rows of {rows} entries: wanted {classes} x {classes}, as the first annotator's")
    known = torch.tensor(matrix)
    if not (known >= 0).all():
        raise ValueError(f"{whose} has an entry that is no probability: {matrix}")
    if not torch.allclose(known.sum(0), torch.ones(()), atol=1e-3):
        raise ValueError(f"columns of {whose} sum to {known.sum(0).tolist()}, not to one: [i][j] is P(i | truth j)")
