"""A whole case from its patches: the posterior where the annotators drew, and what the net thinks of each of them.

Shapes: A annotators, K classes, S the spatial axes of the case. The maps of one case are held in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from casebook import IGNORE, CaseRow, Cohort
from rayters.methods import Prediction
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
    """

    row: CaseRow
    labels: NDArray[np.uint8]
    reference: NDArray[np.uint8] | None
    posterior: NDArray[np.float32]
    written: NDArray[np.float64] | None


def see_cohort(model: Model, cohort: Cohort, *, batch_size: int = 16) -> Iterator[SeenCase]:
    """Each case of the cohort in turn."""
    for row in cohort.cases:
        yield see_case(model, cohort, row, batch_size=batch_size)


@torch.no_grad()
def see_case(model: Model, cohort: Cohort, row: CaseRow, *, batch_size: int = 16) -> SeenCase:
    """Covers the case with patches, each pixel once, and puts them together."""
    layers = (*model.annotators, *((cohort.reference,) if cohort.reference else ()))
    request, device = model.run.request(layers), next(model.net.parameters()).device
    canvas = _Canvas(model, row, layers=len(layers))
    one = replace(cohort, cases=(row,))
    for arrays in local_batches(one, request, Sampling(patches_per_epoch=None), batch_size=batch_size, seed=0, epoch=0):
        batch = to_device(arrays, model.task, device)
        canvas.add(model.run.method.predict(model.net(batch.views)), arrays)
    return canvas.done(has_reference=cohort.reference is not None)


class _Canvas:
    """Collects patches into maps of the case's own size."""

    def __init__(self, model: Model, row: CaseRow, *, layers: int) -> None:
        self.row, self.down = row, model.run.downsampling
        shape = tuple(-(-side // self.down) for side in row.shape)
        self.labels = np.full((layers, *shape), IGNORE, np.uint8)
        self.posterior = np.zeros((model.task.classes, *shape), np.float32)
        self.written: NDArray[np.float64] | None = None

    def add(self, prediction: Prediction, arrays: dict[str, NDArray[np.generic]]) -> None:
        """Pastes a batch where it came from; what lies beyond the border of the case is dropped."""
        posterior = prediction.posterior.cpu().numpy()
        if prediction.confusion is not None:
            mass = _written(prediction.posterior, prediction.confusion)
            self.written = mass if self.written is None else self.written + mass
        for index, origin in enumerate(arrays["origin_px0"]):
            here, part = self._place(origin, posterior.shape[2:])
            self.posterior[here] = posterior[index][part]
            self.labels[here] = arrays["labels"][index][part]

    def _place(self, origin: NDArray[np.generic], size: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where a patch lies on the canvas, and which part of it does."""
        starts = [int(o) // self.down for o in origin]
        shape = self.posterior.shape[1:]
        here = [slice(max(0, o), min(o + n, side)) for o, n, side in zip(starts, size, shape, strict=True)]
        part = [slice(h.start - o, h.stop - o) for h, o in zip(here, starts, strict=True)]
        return (slice(None), *here), (slice(None), *part)

    def done(self, *, has_reference: bool) -> SeenCase:
        """The finished maps."""
        labels = self.labels[:-1] if has_reference else self.labels
        reference = self.labels[-1] if has_reference else None
        return SeenCase(
            row=self.row, labels=labels, reference=reference, posterior=self.posterior, written=self.written
        )


def _written(posterior: Tensor, confusion: Tensor) -> NDArray[np.float64]:
    """Expected pixels (A, K, K) that each annotator writes i where the truth is j, over a batch."""
    belief = posterior.flatten(2).double()  # (B, K, S)
    if confusion.ndim < 5:  # the same for all pixels of a patch, or for all patches
        per_patch = confusion.double().expand(len(belief), *confusion.shape[-3:])
        return torch.einsum("baij,bj->aij", per_patch, belief.sum(2)).cpu().numpy()
    return torch.einsum("baijs,bjs->aij", confusion.flatten(4).double(), belief).cpu().numpy()
