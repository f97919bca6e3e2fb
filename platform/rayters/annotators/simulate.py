"""Five simulated annotators, each with one fixed style, as pure functions of a clean label map.

Shapes: (..., Y, X) integer label maps. Only the last two axes are drawn on: a volume is drawn slice by slice, a stack
picture by picture, as a person does.

On the first 3,600 digits of MNIST's test set (truth = intensity > .5) the five have P(0|0), P(1|1) =
(1, 1), (.71, 1), (1, .29), (.82, .45), (1, 0), and their majority vote a Dice of .689 (mean over digits).

Source: Zhang et al., Disentangling Human Error from the Ground Truth, NeurIPS 2020, section 4 (good, over, under,
wrong, blank); the strengths are those of this project, the multi-class wrong one is the paper's cyclic swap of the
classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from casebook.labels import IGNORE

Labels = NDArray[np.uint8]

SQUARE = np.ones((3, 3), dtype=bool)
CROSS = ndimage.generate_binary_structure(2, 1).astype(bool)
WRONG_SHIFT_PX = (2, 3)  # down, right


@dataclass(frozen=True, kw_only=True)
class SimulatedAnnotator:
    """A name and a style: ``draw`` maps a clean label map to what this annotator writes, same shape and dtype."""

    name: str
    draw: Callable[[Labels], Labels]


def good(truth: Labels) -> Labels:
    """The truth, as a copy."""
    return truth.copy()


def over(truth: Labels) -> Labels:
    """Every class grown by two passes of a 3x3 square; where two classes meet, the higher one covers the lower."""
    return _each_class(truth, lambda mask: _dilate(mask, SQUARE, times=2))


def under(truth: Labels) -> Labels:
    """Every class shrunk by one pass of the cross (4 neighbours); what is lost becomes background. Outside the picture
    counts as background.
    """
    return _each_class(truth, lambda mask: ndimage.binary_erosion(mask, _plane(CROSS, mask.ndim)))


def wrong(truth: Labels) -> Labels:
    """Every class grown by one pass of the cross and displaced by 2 px down, 3 px right."""
    return _each_class(truth, lambda mask: shift(_dilate(mask, CROSS), WRONG_SHIFT_PX))


def blank(truth: Labels) -> Labels:
    """Background wherever the annotator looked."""
    return np.where(truth == IGNORE, truth, np.zeros_like(truth))


def five(classes: int = 2) -> tuple[SimulatedAnnotator, ...]:
    """Good, over, under, wrong and blank for K classes; with several foreground classes the wrong one swaps them
    instead of displacing them.
    """

    def swapped(truth: Labels) -> Labels:
        return swap_classes(truth, classes=classes)

    styles = (good, over, under, wrong if classes == 2 else swapped, blank)
    names = ("good", "over", "under", "wrong", "blank")
    return tuple(SimulatedAnnotator(name=name, draw=draw) for name, draw in zip(names, styles, strict=True))


FIVE: tuple[SimulatedAnnotator, ...] = five()


def draw_all(truth: Labels, annotators: tuple[SimulatedAnnotator, ...] = FIVE) -> Labels:
    """What each of them writes: (A, *truth.shape)."""
    return np.stack([annotator.draw(truth) for annotator in annotators])


def swap_classes(truth: Labels, *, classes: int) -> Labels:
    """Foreground classes in a cycle, 1->2->..->K-1->1; background and IGNORE stay. ``classes`` is K, background
    included.
    """
    table = np.arange(256, dtype=np.uint8)
    table[1:classes] = np.roll(table[1:classes], -1)
    return table[truth].astype(truth.dtype)


def shift(mask: NDArray[np.bool_], by_px: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask moved down and right by so many pixels (negative: up and left); what enters is background, what leaves
    is lost.
    """
    moved = np.zeros_like(mask)
    targets, sources = zip(*(_overlap(d, n) for d, n in zip(by_px, mask.shape[-2:], strict=True)), strict=True)
    moved[(..., *targets)] = mask[(..., *sources)]
    return moved


def _overlap(by_px: int, length: int) -> tuple[slice, slice]:
    """Where to, where from, along one axis."""
    by_px = max(-length, min(length, by_px))
    return slice(max(by_px, 0), length + min(by_px, 0)), slice(max(-by_px, 0), length + min(-by_px, 0))


def _foreground(truth: Labels) -> Labels:
    """The foreground classes that occur, ascending."""
    values = np.unique(truth)
    foreground: Labels = values[(values != 0) & (values != IGNORE)]
    return foreground


def _each_class(truth: Labels, draw: Callable[[NDArray[np.bool_]], NDArray[np.bool_]]) -> Labels:
    """``draw`` for every foreground class, higher classes on top; IGNORE stays IGNORE."""
    written = np.zeros_like(truth)
    for value in _foreground(truth):
        written[draw(truth == value)] = value
    return np.where(truth == IGNORE, truth, written)


def _dilate(mask: NDArray[np.bool_], element: NDArray[np.bool_], *, times: int = 1) -> NDArray[np.bool_]:
    grown: NDArray[np.bool_] = ndimage.binary_dilation(mask, _plane(element, mask.ndim), iterations=times)
    return grown


def _plane(element: NDArray[np.bool_], ndim: int) -> NDArray[np.bool_]:
    """A 3x3 element with leading axes of length 1, so that it never reaches into the neighbouring slice or picture."""
    return element.reshape((1,) * (ndim - 2) + element.shape)
