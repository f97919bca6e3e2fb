"""A whole case from its patches: the posterior where the annotators drew, and what the net thinks of each of them.

Shapes: A annotators, K classes, S the spatial axes of the case. The maps of one case are held in memory at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casebook import IGNORE, CaseRow, Cohort
from rayters.methods import Prediction
from rayters.metrics.confusion_error import EstimatedConfusion, sum_estimate
from rayters.patches.batches import local_batches
from rayters.patches.sampling import Sampling
from rayters.training.model import Model
from rayters.training.step import to_device


@dataclass(frozen=True, kw_only=True)
class SeenCase:
    """One case as its annotators and a model see it.

    labels: (A, *S) uint8 with IGNORE; reference: (*S) uint8 or None; posterior: (K, *S) float32.
    written: (A, K, K) how often, in expected pixels, annotator a writes i where the model believes j; None where the method does not
    estimate confusions. Divided by its sum over i it is a confusion.
    estimate: the same confusions over the pixels of each class of the reference; None without a reference, too.
    """

    row: CaseRow
    labels: NDArray[np.uint8]
    reference: NDArray[np.uint8] | None
    posterior: NDArray[np.float32]
    written: NDArray[np.float64] | None
    estimate: EstimatedConfusion | None = None


def see_cohort(
    model: Model, cohort: Cohort, *, annotators: Sequence[str] | None = None, batch_size: int = 16
) -> Iterator[SeenCase]:
    """Each case of the cohort in turn; see ``see_case``."""
    for row in cohort.cases:
        yield see_case(model, cohort, row, annotators=annotators, batch_size=batch_size)


@torch.no_grad()
def see_case(
    model: Model, cohort: Cohort, row: CaseRow, *, annotators: Sequence[str] | None = None, batch_size: int = 16
) -> SeenCase:
    """Covers the case with patches, each pixel once, and puts them together.

    annotators: whose layers are looked at; None: those that the model learnt from. Of others it has no confusions to tell.
    """
    whose = model.annotators if annotators is None else tuple(annotators)
    layers = (*whose, *((cohort.reference,) if cohort.reference else ()))
    request, device = model.run.request(layers), next(model.net.parameters()).device
    canvas = _Canvas(model, row, layers=len(layers), has_reference=cohort.reference is not None)
    one = replace(cohort, cases=(row,))
    for arrays in local_batches(one, request, Sampling(patches_per_epoch=None), batch_size=batch_size, seed=0, epoch=0):
        batch = to_device(arrays, model.task, device)
        prediction = model.run.method.predict(model.net(batch.views))
        canvas.add(prediction if whose == model.annotators else replace(prediction, confusion=None), arrays)
    return canvas.done()


class _Canvas:
    """Collects patches into maps of the case's own size."""

    def __init__(self, model: Model, row: CaseRow, *, layers: int, has_reference: bool) -> None:
        self.row, self.down, self.has_reference = row, model.run.downsampling, has_reference
        shape = tuple(-(-side // self.down) for side in row.shape)
        self.labels = np.full((layers, *shape), IGNORE, np.uint8)
        self.posterior = np.zeros((model.task.classes, *shape), np.float32)
        self.written: NDArray[np.float64] | None = None
        self.estimate: EstimatedConfusion | None = None

    def add(self, prediction: Prediction, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Pastes a batch where it came from; what lies beyond the border of the case is dropped."""
        posterior = prediction.posterior.cpu().numpy()
        inside = np.zeros((len(posterior), *posterior.shape[2:]), bool)
        for index, origin in enumerate(arrays["origin_px0"]):
            here, part = self._place(origin, posterior.shape[2:])
            self.posterior[here] = posterior[index][part]
            self.labels[here] = arrays["labels"][index][part]
            inside[index][part[1:]] = True
        if prediction.confusion is not None:
            self._add_confusion(prediction.posterior, prediction.confusion, inside, arrays["labels"][:, -1])

    def _add_confusion(
        self, posterior: Tensor, confusion: Tensor, inside: NDArray[np.bool_], reference: NDArray[np.generic]
    ) -> None:
        """inside: (B, *S) the pixels of the case; reference: (B, *S), used where there is one."""
        mass = _written(posterior * torch.from_numpy(inside).to(posterior.device)[:, None], confusion)
        self.written = mass if self.written is None else self.written + mass
        if self.has_reference:
            found = sum_estimate(confusion.cpu().numpy(), np.where(inside, reference, IGNORE).astype(np.uint8))
            self.estimate = found if self.estimate is None else self.estimate + found

    def _place(self, origin: NDArray[np.generic], size: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where a patch lies on the canvas, and which part of it does."""
        starts = [int(o) // self.down for o in origin]
        shape = self.posterior.shape[1:]
        here = [slice(max(0, o), min(o + n, side)) for o, n, side in zip(starts, size, shape, strict=True)]
        part = [slice(h.start - o, h.stop - o) for h, o in zip(here, starts, strict=True)]
        return (slice(None), *here), (slice(None), *part)

    def done(self) -> SeenCase:
        """The finished maps."""
        return SeenCase(
            row=self.row,
            labels=self.labels[:-1] if self.has_reference else self.labels,
            reference=self.labels[-1] if self.has_reference else None,
            posterior=self.posterior,
            written=self.written,
            estimate=self.estimate,
        )


def _written(posterior: Tensor, confusion: Tensor) -> NDArray[np.float64]:
    """Expected pixels (A, K, K) that each annotator writes i where the truth is j, over a batch."""
    belief = posterior.flatten(2).double()  # (B, K, S)
    if confusion.ndim < 5:  # the same for all pixels of a patch, or for all patches
        per_patch = confusion.double().expand(len(belief), *confusion.shape[-3:])
        return torch.einsum("baij,bj->aij", per_patch, belief.sum(2)).cpu().numpy()
    return torch.einsum("baijs,bjs->aij", confusion.flatten(4).double(), belief).cpu().numpy()
