"""A label map as polygons that QuPath opens: one annotation for each connected object, its holes cut out, pixel by pixel exact.

+---+---+       Rings run along the borders of pixels, with the object on their left; where two pixels of an object touch only
| # | # |       at a corner, rings turn so that they touch there too and never cross. Rasterised again (casebook.formats.geojson)
+---+---+       they give the same pixels.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from casebook.documents import colour
from casebook.labels import IGNORE

Ring = list[tuple[int, int]]  # (y, x) corners of pixels, closed: the last is the first


def write_geojson(
    path: str, labels: NDArray[np.uint8], classes: Sequence[str], *, scale: Sequence[float] = (1, 1)
) -> int:
    """labels: (Y, X). scale: level-0 pixels per pixel, y and x. Returns how many annotations were written."""
    features = list(_features(labels, classes, scale))
    Path(path).write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return len(features)


def _features(labels: NDArray[np.uint8], classes: Sequence[str], scale: Sequence[float]) -> Iterator[dict[str, Any]]:
    for value in np.unique(labels):
        if value == 0:
            continue
        name = "Ignore*" if value == IGNORE else classes[int(value)]
        objects, _ = ndimage.label(labels == value)
        for number, box in enumerate(ndimage.find_objects(objects), start=1):
            rings = outlines(objects[box] == number)
            shift = (box[0].start, box[1].start)
            yield {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [_coordinates(ring, shift, scale) for ring in rings]},
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": name, "color": list(colour(int(value))[:3])},
                },
            }


def _coordinates(ring: Ring, shift: tuple[int, int], scale: Sequence[float]) -> list[list[float]]:
    """(x, y) as GeoJSON wants it, in level-0 pixels."""
    return [[(x + shift[1]) * scale[1], (y + shift[0]) * scale[0]] for y, x in ring]


def outlines(mask: NDArray[np.bool_]) -> list[Ring]:
    """The rings of one object (Y, X), the outer one first."""
    ahead = _steps(mask)
    rings = []
    while ahead:
        start = next(iter(ahead))
        rings.append(_walk(start, ahead))
    return sorted(rings, key=lambda ring: -abs(_area(ring)))


def _steps(mask: NDArray[np.bool_]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """From every corner to the next ones, one step along the border of a pixel, the object on the left."""
    padded = np.pad(mask, 1)
    here, ahead = padded[1:-1, 1:-1], defaultdict(list)
    sides = (  # the neighbour across each side of a pixel, and where its border starts and ends, y down and x right
        (padded[:-2, 1:-1], (0, 1), (0, 0)),
        (padded[2:, 1:-1], (1, 0), (1, 1)),
        (padded[1:-1, :-2], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 1), (0, 1)),
    )
    for neighbour, first, last in sides:
        for y, x in np.argwhere(here & ~neighbour).tolist():
            ahead[y + first[0], x + first[1]].append((y + last[0], x + last[1]))
    return dict(ahead)


def _walk(start: tuple[int, int], ahead: dict[tuple[int, int], list[tuple[int, int]]]) -> Ring:
    """Follows and uses up the steps of one ring; corners on a straight line are left out."""
    ring, at, heading = [start], start, (0, 0)
    while True:
        choices = ahead[at]
        step = choices[0] if len(choices) == 1 else _right_of(at, heading, choices)
        choices.remove(step)
        if not choices:
            del ahead[at]
        turned = (step[0] - at[0], step[1] - at[1])
        if turned == heading:
            ring.pop()
        ring.append(step)
        at, heading = step, turned
        if at == start:
            return _closed(ring)


def _right_of(at: tuple[int, int], heading: tuple[int, int], choices: list[tuple[int, int]]) -> tuple[int, int]:
    """Of two ways on, the one that keeps to the same side of the object: a hole that touches the outline stays a ring of its own."""
    right = (at[0] + heading[1], at[1] - heading[0])
    return right if right in choices else choices[0]


def _closed(ring: Ring) -> Ring:
    """Without the first corner where it lies on a straight line."""
    (y0, x0), (y1, x1), (y2, x2) = ring[-2], ring[0], ring[1]
    if (y0 == y1 == y2) or (x0 == x1 == x2):
        return [*ring[1:-1], ring[1]]
    return ring


def _area(ring: Ring) -> float:
    return sum(y0 * x1 - y1 * x0 for (y0, x0), (y1, x1) in pairwise(ring)) / 2
