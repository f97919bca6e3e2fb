# mypy: disable-error-code="no-untyped-call"
"""STAPLE of one case: consensus and every annotator's performance, by SimpleITK; and its spatial form.

Shapes: (A, *S) uint8 label layers, K classes.

STAPLE is Dawid-Skene on one case with a prior that stays fixed at the mean share of each class. SimpleITK computes it
where every annotator looked at every pixel; it knows no IGNORE, so where someone looked at a part only, the same EM
runs on the patterns.

Sources: Warfield, Zou, Wells, STAPLE, IEEE TMI 23(7), 2004. Asman and Landman, Formulating spatially varying
performance in the statistical fusion framework, IEEE TMI 31(6), 2012.
"""

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from casebook.labels import IGNORE
from rayters.annotators.consensus import Consensus
from rayters.annotators.dawid_skene import DawidSkene, dawid_skene

Labels = NDArray[np.uint8]
Floats = NDArray[np.float64]

START = 0.99999  # SimpleITK's first guess of sensitivity and specificity


def staple(layers: Labels, *, classes: int, margin_px: int | None = None, iterations: int = 500) -> Consensus:
    """Binary STAPLE for two classes, multi-label STAPLE for more.

    margin_px: None looks at the whole case. A number crops to what anybody marked, and so many pixels around it: over a
               large background every specificity is near 1, the prior of the foreground near 0, and STAPLE then
               believes whoever marks most.

    An annotator who looked at nothing keeps the first guess as confusion.
    """
    box = _box(layers, margin_px)
    inside = _staple(layers[(slice(None), *box)], classes=classes, iterations=iterations)
    return _paste(inside, layers, box)


def spatial_staple(
    layers: Labels,
    *,
    classes: int,
    window_px: int = 15,
    bias: float = 0.1,
    iterations: int = 20,
    margin_px: int | None = None,
) -> Consensus:
    """STAPLE whose confusions vary in space: at each pixel they are counted in the window around it.

    window_px: side of the window. bias: weight of the whole case's confusion, as a share of the window's pixels; a
               window that lacks a class would know nothing about it otherwise.
    """
    box = _box(layers, margin_px)
    inside = layers[(slice(None), *box)]
    prior, posterior = _mean_share(inside, classes), _shares(inside, classes)
    weight = bias * float(window_px) ** inside[0].ndim
    for _ in range(iterations):
        whole = _mean_confusion(inside, posterior)
        before, posterior = posterior, _spatial_step(inside, posterior, prior, whole, window_px, weight)
        if np.abs(posterior - before).max() < 1e-4:
            break
    seen = (inside != IGNORE).any(axis=0)
    fused = Consensus(
        layer=np.where(seen, posterior.argmax(axis=0), IGNORE).astype(np.uint8),
        posterior=(posterior * seen).astype(np.float32),
        confusion=_mean_confusion(inside, posterior),
    )
    return _paste(fused, layers, box)


def _staple(layers: Labels, *, classes: int, iterations: int) -> Consensus:
    looked = (layers != IGNORE).reshape(len(layers), -1).any(axis=1)
    present = layers[looked]  # none at all when nobody looked
    if len(np.unique(present)) < 2:
        return _unanimous(layers, classes)  # SimpleITK divides 0 by 0 here
    if (present == IGNORE).any():
        fused = _by_patterns(present, classes, iterations)
    else:
        fused = _binary(present, iterations) if classes == 2 else _multi_label(present, classes, iterations)
    confusion = np.repeat(_first_guess(classes)[None], len(layers), axis=0)
    confusion[looked] = fused.confusion
    return Consensus(layer=fused.layer, posterior=fused.posterior, confusion=confusion)


def _binary(layers: Labels, iterations: int) -> Consensus:
    stapler = sitk.STAPLEImageFilter()
    stapler.SetForegroundValue(1)
    stapler.SetMaximumIterations(iterations)
    probability = sitk.GetArrayFromImage(stapler.Execute([sitk.GetImageFromArray(layer) for layer in layers]))
    sensitivity, specificity = np.array(stapler.GetSensitivity()), np.array(stapler.GetSpecificity())
    confusion = np.stack([[specificity, 1 - sensitivity], [1 - specificity, sensitivity]])  # (i, j, A)
    return Consensus(
        layer=(probability > 0.5).astype(np.uint8),
        posterior=np.stack([1 - probability, probability]).astype(np.float32),
        confusion=np.moveaxis(confusion, -1, 0),
    )


def _multi_label(layers: Labels, classes: int, iterations: int) -> Consensus:
    stapler = sitk.MultiLabelSTAPLEImageFilter()
    stapler.SetMaximumNumberOfIterations(iterations)
    stapler.SetLabelForUndecidedPixels(IGNORE)
    stapler.Execute([sitk.GetImageFromArray(layer) for layer in layers])
    confusion = np.repeat(_first_guess(classes)[None], len(layers), axis=0)
    found = int(layers.max()) + 1  # SimpleITK's matrices end at the highest label that occurs
    for a in range(len(layers)):
        matrix = np.array(stapler.GetConfusionMatrix(a)).reshape(-1, found)[:found]
        columns = matrix.sum(axis=0)
        confusion[a, :found, :found] = np.where(
            columns > 0, matrix / np.where(columns > 0, columns, 1), confusion[a, :found, :found]
        )
    return DawidSkene(prior=_mean_share(layers, classes), confusion=confusion, log_likelihood=()).fuse(layers)


def _by_patterns(layers: Labels, classes: int, iterations: int) -> Consensus:
    model = dawid_skene(
        layers,
        classes=classes,
        prior=_mean_share(layers, classes),
        iterations=iterations,
        tolerance=0,
        reliability=START,
    )
    return model.fuse(layers)


def _spatial_step(
    layers: Labels, posterior: Floats, prior: Floats, whole: Floats, window_px: int, weight: float
) -> Floats:
    """One round: confusions in the window around each pixel, then the posterior they imply, (K, *S)."""
    log_joint = np.log(prior.clip(1e-12)).reshape(-1, *(1,) * layers[0].ndim) + np.zeros_like(posterior)
    for a, layer in enumerate(layers):
        looked = layer != IGNORE
        for j, truth in enumerate(posterior):
            pixels = _window_sum(truth * looked, window_px) + weight
            for i in range(len(posterior)):
                here = layer == i
                written = _window_sum(truth * here, window_px) + weight * whole[a, i, j]
                log_joint[j][here] += np.log((written / pixels)[here].clip(1e-6))
    log_joint -= log_joint.max(axis=0)
    joint = np.exp(log_joint)
    normalised: Floats = joint / joint.sum(axis=0)
    return normalised


def _window_sum(values: Floats, window_px: int) -> Floats:
    """The sum over the window, clipped at 0: the running sums of the filter leave rounding errors below it."""
    summed: Floats = ndimage.uniform_filter(values, size=window_px, mode="constant") * float(window_px) ** values.ndim
    return summed.clip(min=0)


def _shares(layers: Labels, classes: int) -> Floats:
    """The share of those who looked that wrote each class, (K, *S); uniform where nobody looked."""
    counts = np.stack([(layers == k).sum(axis=0) for k in range(classes)]).astype(np.float64)
    raters = counts.sum(axis=0)
    return np.where(raters > 0, counts / np.maximum(raters, 1), 1 / classes)


def _mean_confusion(layers: Labels, posterior: Floats) -> Floats:
    """The confusion over the whole case that a posterior implies; the first guess in the column of a class nobody
    had to see.
    """
    confusion = np.repeat(_first_guess(len(posterior))[None], len(layers), axis=0)
    for a, layer in enumerate(layers):
        counts = np.stack(
            [(posterior * (layer == i)).reshape(len(posterior), -1).sum(axis=1) for i in range(len(posterior))]
        )
        pixels = counts.sum(axis=0)
        confusion[a] = np.where(pixels > 0, counts / np.where(pixels > 0, pixels, 1), confusion[a])
    return confusion


def _mean_share(layers: Labels, classes: int) -> Floats:
    """The share of each class among all that was written: the prior of STAPLE."""
    counts = np.bincount(layers[layers != IGNORE], minlength=classes).astype(np.float64)
    share: Floats = counts / max(counts.sum(), 1)
    return share


def _first_guess(classes: int) -> Floats:
    return np.where(np.eye(classes, dtype=bool), START, (1 - START) / max(classes - 1, 1))


def _unanimous(layers: Labels, classes: int) -> Consensus:
    """All wrote one and the same class wherever they looked, or nobody looked: nothing to learn about them."""
    posterior = np.stack([(layers == k).any(axis=0) for k in range(classes)]).astype(np.float32)
    return Consensus(
        layer=layers.min(axis=0),
        posterior=posterior,
        confusion=np.repeat(_first_guess(classes)[None], len(layers), axis=0),
    )


def _box(layers: Labels, margin_px: int | None) -> tuple[slice, ...]:
    """Where anybody marked foreground, and ``margin_px`` around it; everything where that is None or nobody did."""
    marked = ((layers != 0) & (layers != IGNORE)).any(axis=0)
    if margin_px is None or not marked.any():
        return (slice(None),) * len(layers.shape[1:])
    return tuple(slice(max(int(w.min()) - margin_px, 0), int(w.max()) + 1 + margin_px) for w in np.nonzero(marked))


def _paste(inside: Consensus, layers: Labels, box: tuple[slice, ...]) -> Consensus:
    """Outside the box everyone who looked wrote background."""
    seen = (layers != IGNORE).any(axis=0)
    layer = np.where(seen, 0, IGNORE).astype(np.uint8)
    posterior = np.zeros((len(inside.posterior), *layers.shape[1:]), dtype=np.float32)
    posterior[0] = seen
    layer[box] = inside.layer
    posterior[(slice(None), *box)] = inside.posterior
    return Consensus(layer=layer, posterior=posterior, confusion=inside.confusion)
