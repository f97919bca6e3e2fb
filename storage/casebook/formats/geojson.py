"""GeoJSON polygons as QuPath exports them, rasterised tile by tile.

A pixel belongs to a polygon when its centre lies inside by the even-odd rule, so holes, multi-polygons and
self-intersections need no special case and neighbouring tiles always agree. Where classes overlap the later one in
the list of classes is on top. A feature of class 'Region*' (QuPath's own name) says where the annotator looked:
outside all of them is IGNORE.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.errors import CaseFormatError
from casebook.labels import IGNORE
from casebook.source import file_identity

REGION = "Region*"
MOST_BYTES = 2**30
_REGION_VALUE = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shape:
    """One feature: its value, its bounding box (y0, x0, y1, x1), and the edges (n, 4: y, x, y', x') of all its
    rings.
    """

    value: int
    box: tuple[float, float, float, float]
    edges: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Polygons:
    """A label source: one annotator's file over an image of `shape` (Y, X)."""

    path: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    identity: str

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        shapes = _parse(self.path, self.shape, self.classes, self.identity)
        looked = np.zeros(size, bool)
        out = np.zeros(size, np.uint8)
        for shape in shapes:
            y0, x0, y1, x1 = shape.box
            if y1 <= origin[0] or x1 <= origin[1] or y0 >= origin[0] + size[0] or x0 >= origin[1] + size[1]:
                continue
            inside = fill(shape.edges, origin, size)
            if shape.value == _REGION_VALUE:
                looked |= inside
            else:
                out[inside] = shape.value
        if any(shape.value == _REGION_VALUE for shape in shapes):
            out[~looked] = IGNORE
        return out


def fill(edges: NDArray[np.float64], origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pixels of a tile whose centre lies inside by the even-odd rule.

    Each edge crosses some pixel rows (at their centres); every crossing toggles all pixels to the right of it.
    edges: (n, 4) y, x, y', x' in level-0 pixels; origin, size: the tile.
    """
    down = np.where((edges[:, 0] <= edges[:, 2])[:, None], edges, edges[:, [2, 3, 0, 1]])
    first = np.clip(np.ceil(down[:, 0] - 0.5), origin[0], origin[0] + size[0]).astype(np.int64)
    last = np.clip(np.ceil(down[:, 2] - 0.5), origin[0], origin[0] + size[0]).astype(np.int64)
    count = last - first  # rows whose centre lies in [y, y')
    which = np.repeat(np.arange(len(down)), count)
    row = first[which] + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    y0, x0, y1, x1 = down[which].T
    x = x0 + (row + 0.5 - y0) / np.where(y1 > y0, y1 - y0, 1) * (x1 - x0)
    column = np.clip(np.ceil(x - 0.5) - origin[1], 0, size[1]).astype(np.int64)
    toggles = np.bincount((row - origin[0]) * (size[1] + 1) + column, minlength=size[0] * (size[1] + 1))
    inside: NDArray[np.bool_] = np.cumsum(toggles.reshape(size[0], size[1] + 1), axis=1)[:, :-1] % 2 == 1
    return inside


def open_polygons(path: str, shape: tuple[int, ...], classes: Sequence[str]) -> Polygons:
    """The file as a label source over a two-dimensional image; all of it is checked here.

    Raises:
        CaseFormatError: no JSON, no polygons, unknown classes, NaN, or polygons outside the image.
    """
    if len(shape) != 2:
        raise CaseFormatError(
            f"GeoJSON polygons are flat, the image has {len(shape)} axes: export label volumes for volumes"
        )
    source = Polygons(path=path, shape=tuple(shape), classes=tuple(classes), identity=file_identity(path))
    _parse(source.path, source.shape, source.classes, source.identity)
    return source


@lru_cache(maxsize=16)
def _parse(path: str, shape: tuple[int, ...], classes: tuple[str, ...], identity: str) -> tuple[_Shape, ...]:
    if os.path.getsize(path) > MOST_BYTES:
        raise CaseFormatError(f"the GeoJSON has {os.path.getsize(path) / 2**30:.1f} GiB: export a label image instead")
    try:
        document = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise CaseFormatError(f"the file is not valid JSON ({str(error)[:80]}): export it again from QuPath") from error
    shapes = [_shape(number, feature, shape, classes) for number, feature in enumerate(_features(document))]
    return tuple(sorted(shapes, key=lambda s: s.value if s.value != IGNORE else math.inf))


def _features(document: Any) -> list[Any]:
    features = document.get("features") if isinstance(document, dict) and "features" in document else document
    features = [features] if isinstance(features, dict) else features
    if not isinstance(features, list):
        raise CaseFormatError("the JSON holds no list of features: export annotations from QuPath as GeoJSON")
    return features


def _shape(number: int, feature: Any, shape: tuple[int, ...], classes: tuple[str, ...]) -> _Shape:
    try:
        value = _value(number, feature.get("properties") or {}, classes)
        geometry = feature["geometry"]
        kind, rings = geometry["type"], list(_rings(geometry))
        edges = np.concatenate([_edges(ring) for ring in rings])
    except CaseFormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CaseFormatError(
            f"feature {number} is no GeoJSON polygon ({type(error).__name__}): export it again"
        ) from error
    if not np.isfinite(edges).all() or np.abs(edges).max() > 2**40:
        raise CaseFormatError(
            f"feature {number} ({kind}) has coordinates that are NaN, infinite or absurd: delete it in QuPath and "
            "export again"
        )
    box = (edges[:, 0].min(), edges[:, 1].min(), edges[:, 0].max(), edges[:, 1].max())
    if box[2] < 0 or box[3] < 0 or box[0] > shape[0] or box[1] > shape[1]:
        raise CaseFormatError(
            f"feature {number} lies at y {box[0]:.0f}..{box[2]:.0f}, x {box[1]:.0f}..{box[3]:.0f}, outside the "
            f"image of {shape[0]} x {shape[1]} px: "
            "is it from another slide, or not in level-0 pixels?"
        )
    return _Shape(value=value, box=tuple(float(v) for v in box), edges=edges)  # type: ignore[arg-type]


def _value(number: int, properties: dict[str, Any], classes: tuple[str, ...]) -> int:
    """QuPath names the class in properties.classification.name, a derived class ('Tumour: Positive') in names."""
    classification = properties.get("classification") or {}
    if isinstance(classification, dict):
        name = classification.get("name") or ": ".join(classification.get("names") or ()) or None
    else:
        name = str(classification)
    low = [c.lower() for c in classes]
    if name is None and len(classes) == 2:
        return 1
    if name is not None and name.lower() == REGION.lower():
        return _REGION_VALUE
    if name is not None and name.lower() in ("ignore", "ignore*"):
        return IGNORE
    if name is None or name.lower() not in low:
        raise CaseFormatError(
            f"feature {number} has class {name!r}, the classes are {', '.join(classes)}: name it in --classes, or "
            "in QuPath"
        )
    return low.index(name.lower())


def _rings(geometry: dict[str, Any]) -> Iterator[Any]:
    if geometry["type"] == "Polygon":
        yield from geometry["coordinates"]
    elif geometry["type"] == "MultiPolygon":
        for polygon in geometry["coordinates"]:
            yield from polygon
    else:
        raise CaseFormatError(
            f"a {geometry['type']} has no inside: only polygons and multi-polygons are drawings; delete it and "
            "export again"
        )


def _edges(ring: Any) -> NDArray[np.float64]:
    points = np.array([[float(p[1]), float(p[0])] for p in ring], np.float64)
    if len(points) < 3:
        raise CaseFormatError(f"a ring of {len(points)} points has no inside: delete it in QuPath and export again")
    return np.concatenate([points, np.roll(points, -1, axis=0)], axis=1)
