"""Blending: tiles, as a net returns them, become maps.

Shapes: B batch, K classes, A annotators, V views, N maps stacked, P pixels of a tile, S the spatial axes of a tile or of the piece.

    N:  posterior K | what each annotator draws A * K | reliability A | confusion as mass, times the posterior, A * K * K | views V

Sums stay on the net's device; a tile is added in one operation, whatever it consists of.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rayters.gaze.gaze import eyes_of
from rayters.inference.maps import Maps
from rayters.inference.tiling import Box, Tiling
from rayters.methods import Outputs, Prediction


@dataclass(frozen=True, kw_only=True)
class Stack:
    """How many maps of each kind lie in N; annotators is 0 where no confusions are estimated, or none were asked for.

    gaze: the field of view of each view that the net chooses among, () where it does not choose.
    """

    classes: int
    annotators: int
    confusion: bool
    gaze: tuple[float, ...]

    @property
    def sizes(self) -> list[int]:
        """In the order of N."""
        drawn = self.annotators * self.classes
        return [self.classes, drawn, self.annotators, drawn * self.classes * self.confusion, len(self.gaze)]


def stack_of(prediction: Prediction, outputs: Outputs, scales: tuple[float, ...], tiling: Tiling) -> Stack:
    """What a method and a gaze of ``scales`` have to tell; the same for all batches of a model."""
    confusion = prediction.confusion if tiling.annotators else None
    annotators = 0 if confusion is None else confusion.shape[0 if confusion.ndim == 3 else 1]
    return Stack(
        classes=prediction.posterior.shape[1],
        annotators=annotators,
        confusion=tiling.confusion,
        gaze=scales if "view_log_weights" in outputs else (),
    )


def stacked(prediction: Prediction, outputs: Outputs, stack: Stack) -> Tensor:
    """The maps of a batch, (B, N, *S) float32."""
    posterior = prediction.posterior.float().flatten(2)  # (B, K, P)
    parts = [posterior]
    if stack.annotators and prediction.confusion is not None:
        parts += _of_annotators(posterior, prediction.confusion.float(), stack)
    if stack.gaze:
        # probabilities, of the mean over two eyes where there are two; not what a hard choice made of them
        weights = torch.stack([eye["view_log_weights"].float().exp() for eye in eyes_of(outputs)]).mean(0)
        parts.append(weights.unsqueeze(2).expand(-1, -1, posterior.shape[2]))
    return torch.cat(parts, dim=1).view(len(posterior), -1, *prediction.posterior.shape[2:])


def _of_annotators(posterior: Tensor, confusion: Tensor, stack: Stack) -> list[Tensor]:
    """What each draws (B, A * K, P), how reliable each is (B, A, P), and if asked for the mass of each entry (B, A * K * K, P)."""
    per_pixel = confusion.ndim > 4
    confusion = confusion.flatten(4) if per_pixel else confusion.expand(len(posterior), *confusion.shape[-3:])
    entries = "baijp" if per_pixel else "baij"
    drawn = torch.einsum(f"{entries},bjp->baip", confusion, posterior)
    right = torch.einsum(f"{entries.replace('i', 'j')},bjp->bap", confusion, posterior)
    mass = torch.einsum(f"{entries},bjp->baijp", confusion, posterior) if stack.confusion else None
    return [drawn.flatten(1, 2), right, *([] if mass is None else [mass.flatten(1, 3)])]


class Canvas:
    """Collects weighed tiles over a box of a case, and gives them back as maps."""

    def __init__(self, box: Box, stack: Stack, weights: Tensor) -> None:
        """weights: (*S) of a tile, on the device where the sums shall be."""
        self.box, self.stack, self.weights = box, stack, weights
        size = tuple(high - low for low, high in zip(*box, strict=True))
        self.sums = torch.zeros(sum(stack.sizes), *size, device=weights.device)
        self.total = torch.zeros(size, device=weights.device)

    def add(self, maps: Tensor, origins: Any) -> None:
        """maps: (B, N, *S). origins: (B, axes) first pixels of the tiles; what lies outside of the box is dropped."""
        weighed = maps * self.weights
        for index, origin in enumerate(origins.tolist()):
            here, part = self._place(origin)
            self.sums[(slice(None), *here)] += weighed[index][(slice(None), *part)]
            self.total[here] += self.weights[part]

    def _place(self, origin: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where a tile lies in the box, and which part of it does."""
        spans = []
        for first, side, low, high in zip(origin, self.weights.shape, *self.box, strict=True):
            spans.append((max(first, low), min(first + side, high), low, first))
        here = tuple(slice(a - low, b - low) for a, b, low, _ in spans)
        return here, tuple(slice(a - first, b - first) for a, b, _, first in spans)

    def done(self) -> Maps:
        """The maps; background, for certain, where no tile came."""
        predicted = self.total > 0
        mean = self.sums / self.total.clamp_min(1e-12)
        posterior, drawn, right, mass, views = torch.split(mean, self.stack.sizes)
        shape = (self.stack.annotators, self.stack.classes)
        posterior[0].masked_fill_(~predicted, 1)
        maps: dict[str, Any] = {"posterior": posterior, "annotators": None, "reliability": None}
        if self.stack.annotators:
            drawn = drawn.view(*shape, *predicted.shape)
            drawn[:, 0].masked_fill_(~predicted, 1)
            right.masked_fill_(~predicted, 1)
            maps |= {"annotators": drawn, "reliability": right}
            if self.stack.confusion:
                maps["confusion"] = mass.view(*shape, shape[1], *predicted.shape) / posterior.clamp_min(1e-6)
        if self.stack.gaze:
            maps["views"] = views
        arrays: dict[str, Any] = {name: None if each is None else each.cpu().numpy() for name, each in maps.items()}
        return Maps(**arrays, fields_of_view=self.stack.gaze, predicted=predicted.cpu().numpy())
