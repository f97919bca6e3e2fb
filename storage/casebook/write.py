"""Writing a case: all is checked first, the group's zarr.json is written last, so a case is whole or invisible."""

import math
import os
from collections.abc import Mapping
from typing import Any

from casebook.arrays import forget_handles
from casebook.case import Case, Layer
from casebook.documents import image_group, label_group, labels_registry
from casebook.errors import CaseFormatError, ConflictError
from casebook.labels import MAX_CLASSES
from casebook.location import canonical, check_name, exists, join, last_name, remove, write_json
from casebook.one_pass import Progress, PyramidJob, Scheduler, Storage, plan_array, plan_layer, write_arrays
from casebook.opening import open_case
from casebook.pyramid import level_factors
from casebook.source import ImageSource, LabelSource, as_image, as_labels


def write_case(
    url: str | os.PathLike[str],
    image: Any,
    *,
    spacing_um: tuple[float, ...],
    classes: tuple[str, ...],
    layers: Mapping[Layer, Any],
    name: str | None = None,
    storage: Storage | None = None,
    existing: str = "refuse",
    intensity: tuple[float, float] = (1.0, 0.0),
    provenance: Mapping[str, Any] | None = None,
    scheduler: Scheduler = None,
    progress: Progress | None = None,
) -> Case:
    """Writes an image, its pyramid and its label layers; nothing is visible until all of it is there.

    image: (C, *S) array or ImageSource, uint8, int8, uint16 or int16. layers: (*S) arrays or LabelSources, values
    0..K-1 and IGNORE.
    existing: 'refuse' or 'replace' a whole case at the URL; an interrupted one is always resumed.
    scheduler: 'threads', 'synchronous', or what runs the blocks on a cluster (see one_pass.Scheduler); None chooses by
    size.
    progress: called with (blocks done, blocks in all).

    Raises:
        CaseFormatError: shapes, dtype or values are not what a case holds. ConflictError: a whole case is already
        there.
    """
    place = canonical(url)
    source = as_image(image)
    drawings = {layer: as_labels(labels) for layer, labels in layers.items()}
    _check(source, spacing_um, classes, drawings)
    _make_room(place, existing)
    shape = source.shape[1:]
    axes = ("z", "y", "x")[-len(shape) :]
    factors = level_factors(shape, spacing_um)
    arrays = _arrays(place, source, drawings, classes, factors, storage or Storage())
    write_arrays(place, arrays, scheduler, progress)
    for layer in drawings:
        group = label_group(layer=layer, axes=axes, factors=factors, spacing_um=spacing_um, classes=classes)
        write_json(join(place, "labels", layer.id, "zarr.json"), group)
    if drawings:
        write_json(join(place, "labels", "zarr.json"), labels_registry(tuple(layer.id for layer in drawings)))
    title = name or default_name(place)
    ours: dict[str, Any] = {
        "name": title,
        "classes": list(classes),
        "complete": True,
        "intensity": list(intensity),
        "provenance": dict(provenance or {}),
    }
    group = image_group(
        name=title,
        axes=axes,
        factors=factors,
        spacing_um=spacing_um,
        channels=source.shape[0],
        dtype=source.dtype,
        ours=ours,
    )
    write_json(join(place, "zarr.json"), group)
    return open_case(place)


def default_name(url: str) -> str:
    return last_name(url).removesuffix(".zarr").removesuffix(".ome")


def _check(
    source: ImageSource, spacing_um: tuple[float, ...], classes: tuple[str, ...], drawings: Mapping[Layer, LabelSource]
) -> None:
    shape = source.shape[1:]
    if len(spacing_um) != len(shape) or not all(math.isfinite(s) and s > 0 for s in spacing_um):
        raise CaseFormatError(
            f"spacing_um {spacing_um} for an image of {shape} px: one positive number of micrometres per spatial "
            "axis was expected"
        )
    if not 2 <= len(classes) <= MAX_CLASSES or len(set(classes)) != len(classes):
        raise CaseFormatError(
            f"classes {classes}: 2 to {MAX_CLASSES} different names were expected, the first for background"
        )
    if len({layer.id.lower() for layer in drawings}) != len(drawings):
        raise CaseFormatError(
            f"two layers share a name: {[layer.id for layer in drawings]}; names differ by more than case"
        )
    for layer, labels in drawings.items():
        check_name(layer.id, "layer")
        check_shape(layer.id, labels, shape)


def _make_room(url: str, existing: str) -> None:
    """Leaves nothing visible at the URL, or refuses."""
    if not exists(join(url, "zarr.json")):
        return
    if existing != "replace":
        raise ConflictError(f"a whole case already lies at {url}: choose another URL, or existing='replace'")
    remove(join(url, "zarr.json"))  # first, so that readers never see a mixture
    remove(url)
    forget_handles()


def _arrays(
    url: str,
    source: ImageSource,
    drawings: Mapping[Layer, LabelSource],
    classes: tuple[str, ...],
    factors: tuple[tuple[int, ...], ...],
    storage: Storage,
) -> list[PyramidJob]:
    chunk: tuple[int, ...] = storage.image_chunk_px if len(source.shape) == 3 else storage.volume_chunk_px
    image = plan_array("", url, source, source.shape[0], source.dtype, factors, chunk, storage, ())
    return [image, *(plan_layer(url, layer, labels, classes, factors, storage) for layer, labels in drawings.items())]


def check_shape(layer_id: str, labels: LabelSource, shape: tuple[int, ...]) -> None:
    """Labels are drawn on the image's own grid."""
    if tuple(labels.shape) != tuple(shape):
        raise CaseFormatError(
            f"layer {layer_id!r} is {tuple(labels.shape)} px, the image {tuple(shape)} px: draw it on the image's grid"
        )
