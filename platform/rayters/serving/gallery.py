"""What a list of cases shows: a small picture with the consensus outlined, how well the annotators agree, and who writes what.

All of it is measured on a coarse level, once per case, and remembered.
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from math import isnan, prod

import numpy as np
from numpy.typing import NDArray

from casebook import IGNORE, Case
from rayters.annotators.agreement import pair_counts, pairwise_dice
from rayters.annotators.fuse import majority_vote

THUMBNAIL_PX = 192
MOST_PIXELS = 2**20
OUTLINE = (255, 210, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Glance:
    """agreement: mean pairwise Dice, None where there are not two annotators. counts: (A, K, K) pixels that annotator a wrote i where
    the consensus is j. window: intensities (stored units) between which nearly all pixels lie."""

    agreement: float | None
    window: tuple[float, float]
    counts: NDArray[np.int64]
    thumbnail: bytes


@lru_cache(maxsize=4096)
def glance(case: Case) -> Glance:
    """One read of a coarse level."""
    level = next((k for k, s in enumerate(case.shapes) if prod(s) <= MOST_PIXELS), len(case.shapes) - 1)
    origin, size, classes = (0,) * len(case.axes), case.shapes[level], len(case.classes)
    layers = case.read_labels(case.annotators, level, origin, size)
    consensus = majority_vote(layers, classes=classes) if len(layers) else np.zeros(size, np.uint8)
    image = case.read_image(level, origin, size)
    low, high = (float(p) for p in np.percentile(image.astype(np.float32), (0.5, 99.5)))
    if len(size) == 3:
        best = int((consensus > 0).sum(axis=(1, 2)).argmax()) if (consensus > 0).any() else size[0] // 2
        picture = _thumbnail(image[:, best], consensus[best])
    else:
        picture = _thumbnail(image, consensus)
    return Glance(
        agreement=_agreement(layers, classes),
        window=(low, max(high, low + 1)),
        counts=_counts(layers, consensus, classes),
        thumbnail=picture,
    )


def confusions(counts: NDArray[np.int64]) -> list[list[list[float | None]]]:
    """(A, K, K) pixels -> P(writes i | consensus j); None in the column of a class that never was the consensus."""
    total = counts.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
    return [[[None if isnan(p) else round(p, 4) for p in row] for row in one] for one in shares.tolist()]


def _agreement(layers: NDArray[np.uint8], classes: int) -> float | None:
    if len(layers) < 2:
        return None
    dice = pairwise_dice(pair_counts(layers, classes=classes))[np.triu_indices(len(layers), 1)]
    return None if np.isnan(dice).all() else float(np.nanmean(dice))


def _counts(layers: NDArray[np.uint8], consensus: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    counts = np.zeros((len(layers), classes, classes), np.int64)
    for index, layer in enumerate(layers):
        seen = (layer != IGNORE) & (consensus != IGNORE)
        joint = layer[seen].astype(np.int64) * classes + consensus[seen]
        counts[index] = np.bincount(joint, minlength=classes**2).reshape(classes, classes)
    return counts


def _thumbnail(image: NDArray[np.generic], consensus: NDArray[np.uint8]) -> bytes:
    """(C, Y, X) of any dtype, (Y, X) -> PNG of at most THUMBNAIL_PX a side."""
    from PIL import Image

    low, high = np.percentile(image.astype(np.float32), (0.5, 99.5))
    grey = np.clip((image.astype(np.float32) - low) / max(float(high - low), 1e-6), 0, 1) * 255
    colours = np.stack([*grey[:3]] if len(grey) >= 3 else [grey[0]] * 3, axis=-1).astype(np.uint8)
    step = max(1, -(-max(colours.shape[:2]) // THUMBNAIL_PX))
    colours, marked = colours[::step, ::step].copy(), consensus[::step, ::step]
    inside = np.pad(np.where(marked == IGNORE, 0, marked), 1, mode="edge")
    middle = inside[1:-1, 1:-1]
    edge = (middle > 0) & (
        (inside[:-2, 1:-1] != middle)
        | (inside[2:, 1:-1] != middle)
        | (inside[1:-1, :-2] != middle)
        | (inside[1:-1, 2:] != middle)
    )
    colours[edge] = OUTLINE
    out = io.BytesIO()
    Image.fromarray(colours).save(out, "PNG")
    return out.getvalue()
