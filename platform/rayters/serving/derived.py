"""Layers that nobody stored, computed chunk by chunk where a viewer looks: it sees an ordinary OME-Zarr 0.5 image.

| layer | value |
| --- | --- |
| consensus | the class that most annotators wrote, ties to the lowest |
| disagreement | 0 .. 255: entropy of what the annotators wrote, over that of an even split among the classes |

Shapes: A annotators, K classes, S the spatial axes of a level.
"""

import json
import re
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook import IGNORE, Case
from rayters.annotators.fuse import majority_vote

KINDS = ("consensus", "disagreement")
CHUNK_PX = {2: (256, 256), 3: (32, 128, 128)}


def group_json(case: Case, name: str, levels: int) -> dict[str, Any]:
    """The zarr.json of a derived image on the case's own grid."""
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in case.axes]
    datasets = []
    for level in range(levels):
        scale = list(case.spacing_um[level])
        shift = [(s - fine) / 2 for s, fine in zip(scale, case.spacing_um[0], strict=True)]
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        transforms += [{"type": "translation", "translation": shift}] if any(shift) else []
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    ome = {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}


def array_json(case: Case, shape: tuple[int, ...], chunk: tuple[int, ...]) -> dict[str, Any]:
    """The zarr.json of one of its levels: raw bytes, one per pixel."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "dimension_names": list(case.axes),
        "attributes": {},
    }


def derived(case: Case, kind: str, path: str) -> bytes | None:
    """The object at ``path`` of a derived image; None where there is none."""
    parts = path.split("/")
    if parts == ["zarr.json"]:
        return json.dumps(group_json(case, kind, len(case.shapes))).encode()
    if kind not in KINDS or not re.fullmatch(r"[0-9]{1,3}", parts[0]) or int(parts[0]) >= len(case.shapes):
        return None
    level, axes = int(parts[0]), len(case.axes)
    chunk = CHUNK_PX[axes]
    if parts[1:] == ["zarr.json"]:
        return json.dumps(array_json(case, case.shapes[level], chunk)).encode()
    return _chunk(case, kind, level, chunk, parts[1:])


def _chunk(case: Case, kind: str, level: int, chunk: tuple[int, ...], key: list[str]) -> bytes | None:
    if len(key) != len(chunk) + 1 or key[0] != "c" or not all(re.fullmatch(r"[0-9]{1,9}", k) for k in key[1:]):
        return None
    origin = tuple(int(k) * side for k, side in zip(key[1:], chunk, strict=True))
    size = tuple(min(side, n - o) for side, n, o in zip(chunk, case.shapes[level], origin, strict=True))
    if min(size) < 1:
        return None
    layers = case.read_labels(case.annotators, level, origin, size)
    block = np.zeros(chunk, np.uint8)
    block[tuple(slice(n) for n in size)] = computed(layers, kind, len(case.classes))
    return block.tobytes()


def computed(layers: NDArray[np.uint8], kind: str, classes: int) -> NDArray[np.uint8]:
    """(A, *S) -> (*S)."""
    return majority_vote(layers, classes=classes) if kind == "consensus" else disagreement(layers, classes)


def disagreement(layers: NDArray[np.uint8], classes: int) -> NDArray[np.uint8]:
    """(A, *S) -> (*S) 0 unanimous (or nobody looked) .. 255 evenly split; who did not look has no voice.

    >>> disagreement(np.array([[0, 1, 1], [0, 0, 255]], np.uint8), 2).tolist()
    [0, 255, 0]
    """
    voices = (layers != IGNORE).sum(axis=0)
    entropy = np.zeros(layers.shape[1:], np.float32)
    for k in range(classes):
        share = (layers == k).sum(axis=0) / np.maximum(voices, 1)
        entropy -= share * np.log(np.where(share > 0, share, 1))
    return np.asarray(np.rint(255 * np.clip(entropy / log(max(classes, 2)), 0, 1)), dtype=np.uint8)
