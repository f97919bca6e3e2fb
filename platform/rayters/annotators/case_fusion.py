"""Fusing the layers of a whole case block by block, so that a slide costs no more memory than a block of it.

pass 1  count_case: the histogram of what all annotators wrote; those of cases add up to the cohort's
        (a vote needs no first pass)
pass 2  a LabelSource of the casebook: asked for a box, it reads the annotators' layers there and fuses them

Shapes: A annotators, S the spatial axes of the case, level 0.
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from casebook import IGNORE, Case
from rayters.annotators.dawid_skene import DawidSkene, Patterns, add_patterns, count_patterns, dawid_skene
from rayters.annotators.fuse import majority_vote, spatial_staple
from rayters.annotators.staple import START

Box = tuple[tuple[int, ...], tuple[int, ...]]  # origin and size, level-0 pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedSource:
    """The fused layer of a case, computed where it is read.

    model: the posterior of Dawid-Skene or STAPLE decides; None is the majority vote, ties to the lowest class.
    """

    case: Case
    annotators: tuple[str, ...]
    model: DawidSkene | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(*S)."""
        return self.case.shapes[0]

    @property
    def identity(self) -> str:
        """Changes with the case, the annotators and what is believed about them."""
        return digest(self.case.url, self.annotators, model=self.model)

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        """(*size) uint8."""
        layers = self.case.read_labels(self.annotators, 0, origin, size)
        if self.model is None:
            return majority_vote(layers, classes=len(self.case.classes))
        return self.model.fuse(layers).layer


def recipe(how: str, annotators: tuple[str, ...], *, balanced: bool = False, model: DawidSkene | None = None) -> str:
    """How a layer was fused, to be noted as its tool: two layers of one recipe differ by what was drawn and nothing else.

    model: what is believed of the annotators over a whole cohort; None where each case decides for itself.
    """
    return f"rayters {how} {digest(annotators, balanced, model=model)[:12]}"


def digest(*parts: object, model: DawidSkene | None) -> str:
    """32 hexadecimal digits of the parts and a model's confusions, to six decimals: machines differ in the last bits."""
    believed = [] if model is None else [(part.round(6) + 0.0).tobytes() for part in (model.confusion, model.prior)]
    return hashlib.blake2b(repr(parts).encode() + b"".join(believed), digest_size=16).hexdigest()


def count_case(case: Case, annotators: tuple[str, ...], *, block_px: int = 1024) -> Patterns:
    """The patterns of one case, read in blocks of ``block_px``."""
    return add_patterns(
        count_patterns(case.read_labels(annotators, 0, *box)) for box in blocks(case.shapes[0], block_px)
    )


def staple_model(patterns: Patterns, *, classes: int, balanced: bool = False, iterations: int = 500) -> DawidSkene:
    """STAPLE from a case's patterns: the same as ``staple`` on its pixels.

    balanced: pixels where all wrote background count at most as much as those where anybody marked something; over the large
              background of a slide the foreground's prior and every error rate would otherwise vanish.
    """
    counted = _balanced(patterns) if balanced else patterns
    prior = _share(counted, classes)
    return dawid_skene(counted, classes=classes, prior=prior, iterations=iterations, tolerance=0, reliability=START)


def spatial_staple_case(case: Case, annotators: tuple[str, ...], *, most_pixels: int = 2**26) -> NDArray[np.uint8]:
    """Spatial STAPLE of a case that fits into memory.

    Raises:
        ValueError: for a larger one.
    """
    shape = case.shapes[0]
    if int(np.prod(shape)) > most_pixels:
        raise ValueError(
            f"case {case.name!r} has {shape} px, Spatial STAPLE holds a case in memory: use 'staple' or 'dawid-skene'"
        )
    layers = case.read_labels(annotators, 0, (0,) * len(shape), shape)
    return spatial_staple(layers, classes=len(case.classes), margin_px=16).layer


def blocks(shape: tuple[int, ...], block_px: int) -> Iterator[Box]:
    """Boxes that cover the shape, each pixel once; the leading axis of a volume is cut eight times finer.

    >>> list(blocks((3, 5), 4))
    [((0, 0), (3, 4)), ((0, 4), (3, 1))]
    """
    sides = (max(1, block_px // 8), *(block_px,) * 2) if len(shape) == 3 else (block_px,) * len(shape)
    for origin in itertools.product(*(range(0, n, side) for n, side in zip(shape, sides, strict=True))):
        yield origin, tuple(min(side, n - o) for o, n, side in zip(origin, shape, sides, strict=True))


def _balanced(patterns: Patterns) -> Patterns:
    nothing = ((patterns.patterns == 0) | (patterns.patterns == IGNORE)).all(axis=1)
    marked, empty = int(patterns.counts[~nothing].sum()), int(patterns.counts[nothing].sum())
    shrink = min(1.0, marked / max(empty, 1))
    counts = np.where(nothing, np.ceil(patterns.counts * shrink), patterns.counts).astype(np.int64)
    return replace(patterns, counts=counts)


def _share(patterns: Patterns, classes: int) -> NDArray[np.float64]:
    """The share of each class among all that was written."""
    written = np.stack([((patterns.patterns == k).sum(axis=1) * patterns.counts).sum() for k in range(classes)])
    share: NDArray[np.float64] = written / max(int(written.sum()), 1)
    return share
