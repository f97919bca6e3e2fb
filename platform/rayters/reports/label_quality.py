"""Which labels are probably wrong: regions in which a model, sure of itself, sees another class than the label says.

Shapes: K classes, S spatial axes. posterior (K, *S) of a model that was not trained on this label; labels (*S) with IGNORE.

    evidence of a pixel   log p(the model's class) - log p(the label's class), 0 where they agree
    weight of a pixel     how far inside the quarrelled area it lies: outlines differ between any two people, and by a pixel or two
                          between any person and any net, but a nucleus that was forgotten, or one that was drawn twice, is thick
    region                connected pixels of one quarrel (label -> model's class); its score is the sum over its pixels of
                          evidence * (depth - margin)+, relative to the typical area of an object of the case
    label map             1 - a soft minimum over pixels of the label's probability, smoothed by the width of an outline

The soft minimum is cleanlab's (Lad & Mueller 2023, arXiv 2307.05080), where thin outlines dominate it; smoothed they fade, and what is
thick stays. jobs/bench_label_quality.py compares the two where the true errors are known.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from casebook import IGNORE

SURE = 0.8  # a model that gives its class less is not heard
MARGIN_PX = 1.0  # outlines may differ by so much; both were chosen on 21 images, see docs/results/label_quality.md
OUTLINE_PX = 2.0  # standard deviation of the smoothing
SHARPNESS = 0.1  # of the soft minimum, as cleanlab has it; the smaller, the more one bad place decides


@dataclass(frozen=True, kw_only=True)
class Region:
    """One quarrel: where, how large, what was written and what is seen instead.

    low, high: first pixel and one past the last, per axis. score: larger is more suspicious.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    pixels: int
    written: int
    seen: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """A label map, judged. score: in [0, 1], higher is more suspicious; regions: most suspicious first."""

    score: float
    regions: tuple[Region, ...]


def suspect(posterior: NDArray[np.floating], labels: NDArray[np.uint8], *, most: int = 20) -> Suspicion:
    """Judges one label map of one case."""
    looked = labels != IGNORE
    written = np.where(looked, labels, 0).astype(np.int64)
    seen = posterior.argmax(axis=0)
    sure = posterior.max(axis=0) >= SURE
    evidence = _evidence(posterior, written, seen)
    typical = _typical_area(written, seen)
    regions: list[Region] = []
    for pair in sorted({(int(a), int(b)) for a, b in _pairs(written, seen, looked & sure)}):
        quarrel = looked & sure & (written == pair[0]) & (seen == pair[1])
        regions += _regions(quarrel, evidence, typical, pair)
    regions.sort(key=lambda region: -region.score)
    return Suspicion(score=doubt(posterior, labels), regions=tuple(regions[:most]))


def doubt(posterior: NDArray[np.floating], labels: NDArray[np.uint8]) -> float:
    """How improbable the worst parts of a label map are, in [0, 1]; 0 where nobody looked."""
    looked = labels != IGNORE
    written = np.where(looked, labels, 0).astype(np.int64)
    believed = np.where(looked, np.take_along_axis(posterior, written[None], 0)[0], 1.0)
    unlikely = 1 - ndimage.gaussian_filter(believed, OUTLINE_PX)
    weights = np.exp((unlikely - unlikely.max()) / SHARPNESS)
    return float((weights * unlikely).sum() / weights.sum())


def _evidence(
    posterior: NDArray[np.floating], written: NDArray[np.int64], seen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(*S) log odds of what is seen against what was written, at most log 100 so that no pixel decides alone."""
    p = np.clip(posterior, 0.01, 1)
    best = np.take_along_axis(p, seen[None], 0)[0]
    theirs = np.take_along_axis(p, written[None], 0)[0]
    return np.asarray(np.log(best / theirs), dtype=np.float64)


def _pairs(written: NDArray[np.int64], seen: NDArray[np.int64], counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(P, 2) the kinds of quarrel there are."""
    apart = counted & (written != seen)
    return np.unique(np.stack([written[apart], seen[apart]], axis=1), axis=0)


def _typical_area(written: NDArray[np.int64], seen: NDArray[np.int64]) -> float:
    """Median size of a connected object, in pixels; of what was seen where nothing was written."""
    for labels in (written, seen):
        objects, count = ndimage.label(labels > 0)
        if count:
            return float(np.median(np.bincount(objects.ravel())[1:]))
    return float(written.size)


def _regions(
    quarrel: NDArray[np.bool_], evidence: NDArray[np.float64], typical: float, pair: tuple[int, int]
) -> list[Region]:
    """The connected parts of one kind of quarrel that are thicker than an outline's margin."""
    depth = ndimage.distance_transform_edt(np.pad(quarrel, 1, mode="edge"))
    inside = np.maximum(depth[(slice(1, -1),) * quarrel.ndim] - MARGIN_PX, 0)
    parts, count = ndimage.label(quarrel)
    if not count:
        return []
    index = np.arange(1, count + 1)
    mass = ndimage.sum_labels(evidence * inside, parts, index)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    found = []
    for number, box in enumerate(ndimage.find_objects(parts)):
        if mass[number] > 0:
            found.append(
                Region(
                    low=tuple(int(s.start) for s in box),
                    high=tuple(int(s.stop) for s in box),
                    pixels=int(sizes[number]),
                    written=pair[0],
                    seen=pair[1],
                    score=float(mass[number] / typical),
                )
            )
    return found
