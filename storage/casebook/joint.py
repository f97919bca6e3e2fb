"""Several pyramids from one pass: what is computed once, block by block, becomes images and label layers together.

    begin(plan)                      the arrays, new or as an interrupted run left them; is_written(plan, 7) says what it did
    write_joint(plan, 7, {...})      any process, any order; a block owns whole chunks, so each has one writer
    finish(plan)                     coarser levels, then the documents that make it all visible, the first image's last

Blocks are the same boxes for all of them. A finished block leaves a marker; after a kill the same plan goes on there.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from casebook.arrays import forget_handles
from casebook.case import Layer
from casebook.documents import image_group, label_group
from casebook.errors import CaseNotFoundError, ConflictError
from casebook.layers import list_layer, unlist_layer
from casebook.location import exists, join, parent, read_json, remove, write_bytes, write_json
from casebook.one_pass import (
    PARTIAL,
    PyramidJob,
    Storage,
    create_arrays,
    plan_array,
    read_plan,
    sweep,
    write_block,
    write_levels,
)
from casebook.opening import open_case
from casebook.pyramid import level_factors
from casebook.source import check_labels


@dataclass(frozen=True, kw_only=True)
class ImageTarget:
    """An image to be written at `url`. channels names each; intensity: (slope, intercept) from stored to real values."""

    key: str
    url: str
    channels: tuple[str, ...]
    shape: tuple[int, ...]
    spacing_um: tuple[float, ...]
    classes: tuple[str, ...]
    intensity: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LayerTarget:
    """A label layer to be drawn on the image at `url`, whose grid, levels and spacing it shares."""

    key: str
    url: str
    layer: Layer
    shape: tuple[int, ...]
    factors: tuple[tuple[int, ...], ...]
    spacing_um: tuple[float, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class JointPlan:
    """What is written together; picklable. identity changes when the pixels would. arrays: images, then layers."""

    identity: str
    images: tuple[ImageTarget, ...]
    layers: tuple[LayerTarget, ...]
    arrays: tuple[PyramidJob, ...]

    @property
    def notes(self) -> str:
        """Where the plan and the markers lie while it is being carried out."""
        return join(self.images[0].url, PARTIAL)

    @property
    def blocks(self) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """(origin, size) of every block in pixels of the first image."""
        return self.arrays[0].rounds[0].blocks


@dataclass(frozen=True, kw_only=True)
class _Promised:
    """The shape of what will be computed."""

    shape: tuple[int, ...]


def plan_joint(
    images: Sequence[ImageTarget],
    layers: Sequence[LayerTarget],
    *,
    identity: str,
    chunk_px: tuple[int, ...],
    span: int,
) -> JointPlan:
    """Blocks of ``span`` chunks a side. chunk_px: of the first image; where a target is finer, its chunks are so much larger.

    Raises:
        ValueError: when the targets cannot be cut into the same blocks.
    """
    arrays = []
    for image in images:
        promise = _Promised(shape=(len(image.channels), *image.shape))
        factors = level_factors(image.shape, image.spacing_um)
        arrays.append(_plan("", image.url, promise, len(image.channels), factors, chunk_px, span, ()))
    for layer in layers:
        finer = round(max(a / b for a, b in zip(layer.shape, images[0].shape, strict=True)))
        chunk = tuple(c * finer for c in chunk_px)
        promise = _Promised(shape=layer.shape)
        arrays.append(_plan(layer.layer.id, layer.url, promise, 0, layer.factors, chunk, span, layer.classes))
    if len({len(array.rounds[0].blocks) for array in arrays}) != 1:
        raise ValueError(
            f"targets of {[array.levels[0].shape for array in arrays]} px cannot be cut into the same blocks"
        )
    return JointPlan(identity=identity, images=tuple(images), layers=tuple(layers), arrays=tuple(arrays))


def _plan(
    name: str,
    url: str,
    promise: _Promised,
    channels: int,
    factors: tuple[tuple[int, ...], ...],
    chunk_px: tuple[int, ...],
    span: int,
    classes: tuple[str, ...],
) -> PyramidJob:
    return plan_array(name, url, promise, channels, "uint8", factors, chunk_px, Storage(), classes, span)


def is_finished(plan: JointPlan) -> bool:
    """Whether exactly this lies there, whole."""
    try:
        document = read_json(join(plan.images[0].url, "zarr.json"))
    except CaseNotFoundError:
        return False
    ours = document.get("attributes", {}).get("casebook", {})
    return bool(ours.get("provenance", {}).get("identity") == plan.identity)


def begin(plan: JointPlan) -> None:
    """Makes room and creates the arrays, or finds them as an interrupted run of the same plan left them.

    Raises:
        ConflictError: a layer of this id was drawn by somebody, and is no prediction.
    """
    documents = [array.documents for array in plan.arrays]
    fingerprint = hashlib.sha256(json.dumps([plan.identity, documents], sort_keys=True).encode()).hexdigest()
    note = join(plan.notes, "plan.json")
    if read_plan(note) != fingerprint:
        _make_room(plan)
        for array in plan.arrays:
            create_arrays(array)
        write_json(note, {"plan": fingerprint})


def is_written(plan: JointPlan, index: int) -> bool:
    """Whether a block has been written, by whomever, since the plan was begun."""
    return exists(join(plan.notes, "0", str(index)))


def _make_room(plan: JointPlan) -> None:
    """Removes what an older plan left; what somebody drew is never touched."""
    for layer in plan.layers:
        if exists(join(layer.url, "zarr.json")):
            listed = next((x for x in open_case(layer.url).layers if x.id.lower() == layer.layer.id.lower()), None)
            if listed is not None and listed.role != "prediction":
                raise ConflictError(
                    f"case {layer.url} has a layer {listed.id!r} that is no prediction ({listed.role}): choose another --name"
                )
    for image in plan.images:
        remove(join(image.url, "zarr.json"))  # first, so that readers never see a mixture
        remove(image.url)
    for layer in plan.layers:
        if exists(join(layer.url, "labels", "zarr.json")):
            unlist_layer(layer.url, layer.layer.id)
        remove(join(layer.url, "labels", layer.layer.id))
    forget_handles()


def write_joint(plan: JointPlan, index: int, blocks: Mapping[str, NDArray[Any]]) -> None:
    """Writes one block of every target, by key: images (C, *size), layers (*size), uint8; then leaves its marker."""
    targets: tuple[ImageTarget | LayerTarget, ...] = (*plan.images, *plan.layers)
    for target, array in zip(targets, plan.arrays, strict=True):
        block = blocks[target.key]
        if isinstance(target, LayerTarget):
            check_labels(block, target.classes, target.layer.id)
        work = array.rounds[0]
        write_levels(array, work, work.blocks[index][0], block)
    write_bytes(join(plan.notes, "0", str(index)), b"")


def finish(plan: JointPlan, *, about: Mapping[str, Any]) -> None:
    """Writes the coarser levels and makes everything visible. about: provenance, kept with every image."""
    for array in plan.arrays:
        for number in range(1, len(array.rounds)):
            for index in range(len(array.rounds[number].blocks)):
                write_block(array, number, index)
    for target in plan.layers:
        group = label_group(
            layer=target.layer,
            axes=_axes(target.shape),
            factors=target.factors,
            spacing_um=target.spacing_um,
            classes=target.classes,
        )
        write_json(join(target.url, "labels", target.layer.id, "zarr.json"), group)
        list_layer(target.url, target.layer.id)
    for image in reversed(plan.images):
        write_json(join(image.url, "zarr.json"), _image_document(image, plan, about))
    remove(plan.notes)
    for array in plan.arrays:
        sweep(parent(array.levels[0].url))
    forget_handles()


def _image_document(image: ImageTarget, plan: JointPlan, about: Mapping[str, Any]) -> dict[str, Any]:
    ours: dict[str, Any] = {
        "name": image.key,
        "classes": list(image.classes),
        "complete": True,
        "intensity": list(image.intensity),
        "provenance": {"identity": plan.identity, **about},
    }
    return image_group(
        name=image.key,
        axes=_axes(image.shape),
        factors=level_factors(image.shape, image.spacing_um),
        spacing_um=image.spacing_um,
        channels=len(image.channels),
        dtype="uint8",
        ours=ours,
        channel_names=image.channels,
    )


def _axes(shape: tuple[int, ...]) -> tuple[str, ...]:
    return ("z", "y", "x")[-len(shape) :]
