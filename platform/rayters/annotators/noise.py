"""Label noise for experiments: what a careless, a hasty or a systematically biased person does to a clean mask.

Shapes: (..., Y, X) integer label maps of one picture or volume; the last two axes are drawn on, as in ``simulate``.

Every generator is a frozen value with a pure ``draw(truth, rng)``; ``corrupt`` applies one to a share of the pictures
of a set, with a published seed. Each can be *biased* (it always errs to the same side, which hurts most) or not.

Sources, in our own form: ``SuperpixelGuided`` Li et al., MICCAI 2021; ``DiscNoise`` Zhang et al.,
CL-seg, MICCAI 2020; ``MarkovBoundary`` Yao et al., Learning to segment from noisy annotations, ICLR 2023. Biased
against unbiased: Vorontsov and Kadoury, Label noise in segmentation networks: mitigation must deal with bias, 2021.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from casebook.labels import IGNORE
from rayters.annotators.simulate import CROSS, shift

Labels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Bias = Literal["none", "grow", "shrink"]


class Noise(Protocol):
    """A way to spoil a mask."""

    def draw(self, truth: Labels, rng: np.random.Generator) -> Labels:
        """A spoilt copy of the label map, same shape and dtype; IGNORE stays."""


@dataclass(frozen=True, kw_only=True)
class SuperpixelGuided:
    """Dilation, erosion or an affine move, as strong as it takes to change ``share`` of the foreground.

    share: changed pixels / foreground pixels (the papers' beta: .5, .7). bias: which kinds are drawn: all three, or
    one.
    """

    share: float = 0.5
    max_degrees: float = 30.0
    bias: Bias = "none"

    def draw(self, truth: Labels, rng: np.random.Generator) -> Labels:
        """One of the three kinds for the whole picture, each class as strongly as ``share`` asks; IGNORE stays."""
        kind = {"grow": 0, "shrink": 1}.get(self.bias, int(rng.integers(3)))
        degrees, direction = rng.uniform(-self.max_degrees, self.max_degrees), rng.uniform(0, 2 * np.pi)

        def spoil(mask: Mask) -> Mask:
            if kind < 2:
                distance = _signed_distance(mask)
                return _strong_enough(lambda r: distance <= (r if kind == 0 else -r), mask, self.share)
            turned = _rotate(mask, degrees)
            return _strong_enough(lambda r: _move(turned, r, direction), mask, self.share)

        return _each_class(truth, spoil)


@dataclass(frozen=True, kw_only=True)
class DiscNoise:
    """Dilation, erosion or a shift by a radius drawn from ``radius_px`` (inclusive), then a ragged edge.

    radius_px: the papers' beta, in the pixels of a 256 px radiograph: clavicle 5-10, heart 14-20, lung 20-30.
    edge_sd_px: standard deviation of the edge, a smooth Gaussian displacement; 0 leaves it clean.
    """

    radius_px: tuple[int, int] = (5, 10)
    edge_sd_px: float = 1.0
    bias: Bias = "none"

    def draw(self, truth: Labels, rng: np.random.Generator) -> Labels:
        """One kind, radius and ragged edge for the whole picture, applied to each class; IGNORE stays."""
        radius = int(rng.integers(self.radius_px[0], self.radius_px[1] + 1))
        kind = {"grow": 0, "shrink": 1}.get(self.bias, int(rng.integers(3)))
        direction = rng.uniform(0, 2 * np.pi)
        ragged = ndimage.gaussian_filter(rng.standard_normal(truth.shape), _in_plane(2.0, truth.ndim))
        ragged *= self.edge_sd_px / max(float(ragged.std()), 1e-9)

        def spoil(mask: Mask) -> Mask:
            moved = _move(mask, float(radius), direction) if kind == 2 else mask
            threshold = {0: float(radius), 1: -float(radius), 2: 0.0}[kind]
            return np.asarray(_signed_distance(moved) <= threshold + ragged)

        return _each_class(truth, spoil)


@dataclass(frozen=True, kw_only=True)
class MarkovBoundary:
    """A boundary that wanders: each step expands (with probability ``expand``) or shrinks, and each boundary pixel
    follows at random.

    steps: T. expand: theta 1, the bias: .5 none, .8 outwards, .2 inwards. follow: theta 2, how many pixels of the
    boundary follow a step. flip: theta 3, how many pixels next to the final boundary are flipped. Published: JSRT
    180, .8/.2, .05, .2; BraTS 80, .7/.3.
    """

    steps: int = 80
    expand: float = 0.5
    follow: float = 0.05
    flip: float = 0.2

    def draw(self, truth: Labels, rng: np.random.Generator) -> Labels:
        """Every class wanders by the same sequence of steps, its pixels on their own; IGNORE stays."""
        outwards = rng.random(self.steps) < self.expand

        def spoil(mask: Mask) -> Mask:
            for out in outwards:
                edge = _outer_edge(mask) if out else _outer_edge(~mask)
                mask = mask ^ (edge & (rng.random(mask.shape) < self.follow))
            near = _outer_edge(mask) | _outer_edge(~mask)
            return mask ^ (near & (rng.random(mask.shape) < self.flip))

        return _each_class(truth, spoil)


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """labels: as many maps as were given; noisy: (N,) which of them were spoilt."""

    labels: tuple[Labels, ...]
    noisy: NDArray[np.bool_]


def corrupt(truths: Sequence[Labels], noise: Noise, *, share: float, seed: int) -> Corrupted:
    """Spoil ``share`` of the pictures (the papers' alpha), rounded; each picture has its own stream of random numbers.

    So a picture is spoilt alike whatever the others are, and those spoilt at a small share are among those spoilt at
    a larger one.
    """
    rank = np.random.default_rng([seed, 0]).permutation(len(truths))
    noisy = rank < round(share * len(truths))
    streams = [np.random.default_rng([seed, 1, n]) for n in range(len(truths))]
    drawn = zip(truths, streams, noisy, strict=True)
    labels = tuple(noise.draw(truth, rng) if spoilt else truth.copy() for truth, rng, spoilt in drawn)
    return Corrupted(labels=labels, noisy=noisy)


def _strong_enough(at_strength: Callable[[float], Mask], mask: Mask, share: float) -> Mask:
    """The mask at the smallest strength in pixels that changes ``share`` of the foreground, by bisection."""
    low, high = 0.0, float(max(mask.shape[-2:]))
    for _ in range(16):
        middle = (low + high) / 2
        enough = (at_strength(middle) ^ mask).sum() >= share * mask.sum()
        low, high = (low, middle) if enough else (middle, high)
    return at_strength(high)


def _signed_distance(mask: Mask) -> NDArray[np.float64]:
    """In-plane distance to the boundary in pixels, negative inside; half a pixel off the boundary on either side.
    Far outside if empty.
    """
    planes = mask.reshape(-1, *mask.shape[-2:])
    distances = [_plane_distance(plane) for plane in planes]
    return np.stack(distances).reshape(mask.shape)


def _plane_distance(plane: Mask) -> NDArray[np.float64]:
    if plane.all() or not plane.any():
        return np.full(plane.shape, -np.inf if plane.all() else np.inf)
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(~plane) - ndimage.distance_transform_edt(plane)
    return distance - 0.5 * np.sign(distance)


def _rotate(mask: Mask, degrees: float) -> Mask:
    """About the centre of gravity of each plane's foreground."""
    planes = mask.reshape(-1, *mask.shape[-2:])
    return np.stack([_rotate_plane(plane, np.deg2rad(degrees)) for plane in planes]).reshape(mask.shape)


def _rotate_plane(plane: Mask, radians: float) -> Mask:
    if not plane.any():
        return plane
    centre = np.argwhere(plane).mean(axis=0)
    turn = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    turned = ndimage.affine_transform(plane.astype(np.uint8), turn, offset=centre - turn @ centre, order=0)
    return np.asarray(turned > 0)


def _move(mask: Mask, by_px: float, direction: float) -> Mask:
    return shift(mask, (round(by_px * np.sin(direction)), round(by_px * np.cos(direction))))


def _outer_edge(mask: Mask) -> Mask:
    """Pixels outside that touch the mask with a side, in the plane."""
    element = CROSS.reshape((1,) * (mask.ndim - 2) + CROSS.shape)
    grown: Mask = ndimage.binary_dilation(mask, element)
    return grown & ~mask


def _in_plane(sigma: float, ndim: int) -> tuple[float, ...]:
    return (0.0,) * (ndim - 2) + (sigma, sigma)


def _each_class(truth: Labels, spoil: Callable[[Mask], Mask]) -> Labels:
    written = np.zeros_like(truth)
    for value in np.unique(truth[(truth != 0) & (truth != IGNORE)]):
        written[spoil(truth == value)] = value
    return np.where(truth == IGNORE, truth, written)
