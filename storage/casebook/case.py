"""A case: one image with its pyramid and everything drawn on it, as an OME-Zarr 0.5 group (0.4 is read as well).

case.ome.zarr/  zarr.json                 attributes: ome (the specification's), casebook (ours)
                0/ 1/ ...                 levels, (c, [z,] y, x)
                labels/zarr.json          the registry: only layers listed there exist
                labels/<layer>/0/ 1/ ...  one annotator's map, uint8, as many levels as the image
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.array_metadata import ArrayInfo
from casebook.arrays import start_read
from casebook.errors import CaseFormatError
from casebook.labels import IGNORE

ROLES = ("annotator", "reference", "fusion", "prediction")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One label map of a case, and where it comes from.

    role: 'annotator' (a person, or a simulated one), 'reference' (for reports only), 'fusion' or 'prediction' (made
    from others).
    drawn_on: a date, ISO 8601. expertise: free words, as 'radiologist, 12 years'.
    """

    id: str
    role: str = "annotator"
    drawn_by: str | None = None
    tool: str | None = None
    drawn_on: str | None = None
    expertise: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise CaseFormatError(f"layer {self.id!r} has role {self.role!r}: one of {', '.join(ROLES)} was expected")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How the arrays of a case lie on disk: what a reader needs and nobody else."""

    axes: tuple[str, ...]
    levels: tuple[ArrayInfo, ...]
    label_axes: tuple[tuple[str, ...], ...]
    label_levels: tuple[tuple[ArrayInfo, ...], ...]  # one tuple per layer, in the order of Case.layers


@dataclass(frozen=True, kw_only=True)
class Case:
    """Metadata only: picklable, no open handle, no secret.

    axes: ('y', 'x') or ('z', 'y', 'x'). shapes, spacing_um: per level, level 0 first. chunk_px: spatial, level 0.
    classes[k] names value k; 0 is background. intensity: (slope, intercept) from stored values to those of the source.
    """

    url: str
    name: str
    axes: tuple[str, ...]
    channels: int
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    spacing_um: tuple[tuple[float, ...], ...]
    chunk_px: tuple[int, ...]
    classes: tuple[str, ...]
    layers: tuple[Layer, ...]
    stored: Stored
    intensity: tuple[float, float] = (1.0, 0.0)

    @property
    def annotators(self) -> tuple[str, ...]:
        return tuple(layer.id for layer in self.layers if layer.role == "annotator")

    @property
    def reference(self) -> str | None:
        return next((layer.id for layer in self.layers if layer.role == "reference"), None)

    def read_image(self, level: int, origin: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
        """(C, *size) in the stored dtype; origin and size in pixels of that level, inside it.

        Raises:
            ValueError: the box leaves the level. CorruptChunkError: stored bytes cannot be decoded.
        """
        box = self._box(level, origin, size)
        return _start(self.stored.levels[level], self.stored.axes, self.axes, box)()

    def read_labels(
        self, layer_ids: Sequence[str], level: int, origin: Sequence[int], size: Sequence[int]
    ) -> NDArray[np.uint8]:
        """(len(layer_ids), *size) uint8, all layers at once; who drew nothing in this case yields a plane of IGNORE."""
        box = self._box(level, origin, size)
        order = {layer.id: i for i, layer in enumerate(self.layers)}
        planes = np.empty((len(layer_ids), *(s.stop - s.start for s in box)), np.uint8)
        planes[[plane for plane, id in enumerate(layer_ids) if id not in order]] = IGNORE
        known = [(plane, order[id]) for plane, id in enumerate(layer_ids) if id in order]
        reads = [
            _start(self.stored.label_levels[i][level], self.stored.label_axes[i], self.axes, box) for _, i in known
        ]
        for (plane, i), read in zip(known, reads, strict=True):
            planes[plane] = _as_labels(read()[0], self, self.layers[i].id)
        return planes

    def _box(self, level: int, origin: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
        if not 0 <= level < len(self.shapes):
            raise ValueError(f"case {self.name!r} has levels 0..{len(self.shapes) - 1}, level {level} was asked for")
        shape = self.shapes[level]
        if not len(origin) == len(size) == len(shape) or any(
            o < 0 or s < 1 or o + s > n for o, s, n in zip(origin, size, shape, strict=True)
        ):
            raise ValueError(
                f"case {self.name!r} level {level} has {shape} px; {tuple(size)} px from {tuple(origin)} leave "
                "it: pad outside the casebook"
            )
        return tuple(slice(int(o), int(o) + int(s)) for o, s in zip(origin, size, strict=True))


def _start(
    info: ArrayInfo, stored_axes: tuple[str, ...], axes: tuple[str, ...], box: tuple[slice, ...]
) -> Callable[[], NDArray[Any]]:
    """Begins to read a box of all channels; finishes as (C, *S) whatever the stored order of axes."""
    wanted = dict(zip(axes, box, strict=True))
    channel = {"c": slice(0, info.shape[stored_axes.index("c")])} if "c" in stored_axes else {}
    finish = start_read(info, tuple((wanted | channel).get(axis, slice(0, 1)) for axis in stored_axes))
    if stored_axes == ("c", *axes):
        return finish
    kept = ("c", *axes)

    def ordered() -> NDArray[Any]:
        block = finish()
        drop = tuple(i for i, axis in enumerate(stored_axes) if axis not in kept)
        left = [axis for axis in stored_axes if axis in kept]
        block = block.squeeze(drop)
        block = block if "c" in left else block[None]
        left = left if "c" in left else ["c", *left]
        return np.ascontiguousarray(block.transpose([left.index(axis) for axis in kept]))

    return ordered


def _as_labels(plane: NDArray[Any], case: Case, layer: str) -> NDArray[np.uint8]:
    if plane.dtype == np.uint8:
        return plane
    if plane.size and (int(plane.min()) < 0 or int(plane.max()) > IGNORE):
        raise CaseFormatError(
            f"layer {layer!r} of {case.url} holds {plane.min()}..{plane.max()}, classes 0..254 and IGNORE (255) "
            "were expected: "
            "ingest the case and name the classes"
        )
    return plane.astype(np.uint8)
