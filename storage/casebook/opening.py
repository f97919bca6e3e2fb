"""Opening a case: its metadata documents, checked, become a `Case`."""

import itertools
import math
import os
from typing import Any

from casebook.array_metadata import ArrayInfo, read_info
from casebook.case import Case, Layer, Stored
from casebook.errors import CaseFormatError, CaseNotFoundError
from casebook.labels import MAX_CLASSES
from casebook.location import canonical, join, last_name, read_json

_MICROMETRES = {
    "micrometer": 1.0,
    "micron": 1.0,
    "um": 1.0,
    "millimeter": 1e3,
    "nanometer": 1e-3,
    "centimeter": 1e4,
    "meter": 1e6,
    "angstrom": 1e-4,
    "picometer": 1e-6,
    "inch": 25400.0,
}


def open_case(url: str | os.PathLike[str]) -> Case:
    """The metadata of the case at `url`: a folder, memory:// or any fsspec URL, OME-Zarr 0.5 or 0.4.

    Raises:
        CaseNotFoundError: no whole case lies there.
        CaseFormatError: its metadata is not what OME-Zarr promises.
    """
    place = canonical(url)
    try:
        attributes = group_attributes(place)
    except CaseNotFoundError as error:
        raise CaseNotFoundError(
            f"no whole case lies at {place}: check the spelling; if an ingest was interrupted there, run it "
            "again, it resumes"
        ) from error
    try:
        return _case(place, attributes)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        if isinstance(error, CaseFormatError | CaseNotFoundError):
            if place in str(error):
                raise
            raise CaseFormatError(f"{place}: {error}") from error
        raise CaseFormatError(
            f"the metadata of {place} is damaged ({type(error).__name__}: {error}): restore it, or write the case again"
        ) from error


def group_attributes(url: str) -> dict[str, Any]:
    """The attributes of a group, with `ome` at its 0.5 place whatever the version."""
    try:
        document = read_json(join(url, "zarr.json"))
    except CaseNotFoundError:
        flat = read_json(join(url, ".zattrs"))
        return {"ome": flat, "casebook": flat.get("casebook", {})}
    if document.get("node_type") != "group":
        raise CaseFormatError(
            f"{url} is a zarr {document.get('node_type')!r}, a group with multiscales was expected: give the "
            "folder above it"
        )
    attributes = document.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def _case(url: str, attributes: dict[str, Any]) -> Case:
    ours = attributes.get("casebook") or {}
    if not isinstance(ours, dict) or ours.get("schema", 1) != 1:
        raise CaseFormatError(f"{url} was written by a newer casebook (schema {ours.get('schema')}): update rayters")
    complete = bool(ours.get("complete", False))
    axes, levels, spacing = _pyramid(url, attributes, complete)
    spatial = tuple(axis for axis in ("z", "y", "x") if axis in axes)
    layers = _layers(url, len(levels), spatial, _shape(levels[0], axes, spatial))
    first = levels[0]
    return Case(
        url=url,
        name=str(ours.get("name") or last_name(url).removesuffix(".zarr").removesuffix(".ome")),
        axes=spatial,
        channels=first.shape[axes.index("c")] if "c" in axes else 1,
        dtype=first.dtype,
        shapes=tuple(_shape(info, axes, spatial) for info in levels),
        spacing_um=spacing,
        chunk_px=tuple(first.chunk[axes.index(axis)] for axis in spatial),
        classes=_classes(ours, layers),
        layers=tuple(layer for layer, *_ in layers),
        stored=Stored(
            axes=axes,
            levels=levels,
            label_axes=tuple(a for _, a, _, _ in layers),
            label_levels=tuple(i for _, _, i, _ in layers),
        ),
        intensity=_intensity(ours),
    )


def _intensity(ours: dict[str, Any]) -> tuple[float, float]:
    slope, intercept = ours.get("intensity", (1.0, 0.0))
    return float(slope), float(intercept)


def _shape(info: ArrayInfo, axes: tuple[str, ...], spatial: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(info.shape[axes.index(axis)] for axis in spatial)


def _pyramid(
    url: str, attributes: dict[str, Any], complete: bool
) -> tuple[tuple[str, ...], tuple[ArrayInfo, ...], tuple[tuple[float, ...], ...]]:
    """The axes as stored, the levels, and the spacing of each level in micrometres."""
    ome = attributes.get("ome")
    multiscales = ome.get("multiscales") if isinstance(ome, dict) else None
    if not isinstance(multiscales, list) or not multiscales:
        raise CaseFormatError(
            f"{url} has no multiscales: an OME-Zarr 0.4 or 0.5 image was expected (plates and 0.6 scenes are not read)"
        )
    multiscale = multiscales[0]
    axes = tuple(_axis_name(axis) for axis in multiscale["axes"])
    _check_axes(url, axes)
    outer = _scale(multiscale, len(axes))
    levels, spacing = [], []
    for dataset in multiscale["datasets"]:
        info = read_info(join(url, _inside(url, dataset["path"])), complete=complete)
        if len(info.shape) != len(axes):
            raise CaseFormatError(
                f"{info.url} has {len(info.shape)} axes, the metadata says {axes}: restore the metadata"
            )
        if "t" in axes and info.shape[axes.index("t")] != 1:
            raise CaseFormatError(f"{url} has {info.shape[axes.index('t')]} time points: write one case per time point")
        scale = [a * b for a, b in zip(outer, _scale(dataset, len(axes)), strict=True)]
        units = [_unit(axis) for axis in multiscale["axes"]]
        levels.append(info)
        spacing.append(tuple(scale[axes.index(a)] * units[axes.index(a)] for a in ("z", "y", "x") if a in axes))
    _check_levels(url, levels)
    return axes, tuple(levels), tuple(spacing)


def _check_levels(url: str, levels: list[ArrayInfo]) -> None:
    for fine, coarse in itertools.pairwise(levels):
        if any(a < b for a, b in zip(fine.shape, coarse.shape, strict=True)) or coarse.dtype != fine.dtype:
            raise CaseFormatError(
                f"{url}: level {coarse.url} ({coarse.shape}) is not a reduction of {fine.url} ({fine.shape}): "
                "restore the metadata"
            )


def _axis_name(axis: Any) -> str:
    return str(axis if isinstance(axis, str) else axis["name"])


def _unit(axis: Any) -> float:
    """Micrometres per unit; without a unit the numbers are taken as micrometres."""
    unit = axis.get("unit") if isinstance(axis, dict) else None
    if unit is not None and isinstance(axis, dict) and axis.get("type") == "space" and unit not in _MICROMETRES:
        raise CaseFormatError(f"unit {unit!r} of axis {axis.get('name')!r} is not known: {', '.join(_MICROMETRES)} are")
    return _MICROMETRES.get(str(unit), 1.0)


def _check_axes(url: str, axes: tuple[str, ...]) -> None:
    if len(set(axes)) != len(axes) or not set(axes) <= {"t", "c", "z", "y", "x"} or not {"y", "x"} <= set(axes):
        raise CaseFormatError(f"{url} has axes {axes}: y and x, and at most t, c, z beside them, were expected")


def _scale(holder: dict[str, Any], count: int) -> list[float]:
    for transform in holder.get("coordinateTransformations") or []:
        if transform["type"] == "scale":
            scale = [float(value) for value in transform["scale"]]
            if len(scale) != count or not all(math.isfinite(v) and v > 0 for v in scale):
                raise CaseFormatError(
                    f"a scale of {scale} for {count} axes: one positive number per axis was expected; restore the "
                    "metadata"
                )
            return scale
    return [1.0] * count


def _inside(url: str, path: Any) -> str:
    """A relative path that stays inside the case."""
    if (
        not isinstance(path, str)
        or not path
        or path.startswith("/")
        or ".." in path.split("/")
        or "\\" in path
        or "://" in path
    ):
        raise CaseFormatError(
            f"{url} names the path {path!r}, which is not inside it: the metadata is damaged or not to be trusted"
        )
    return path


def _layers(
    url: str, levels: int, spatial: tuple[str, ...], shape: tuple[int, ...]
) -> list[tuple[Layer, tuple[str, ...], tuple[ArrayInfo, ...], dict[str, Any]]]:
    """Each listed layer with its axes, levels and `image-label` document."""
    try:
        listed = group_attributes(join(url, "labels"))["ome"]["labels"]
    except (CaseNotFoundError, KeyError, TypeError):
        return []
    if not isinstance(listed, list):
        raise CaseFormatError(f"{url}/labels lists {listed!r}: a list of names was expected; restore its metadata")
    found = []
    for id in listed:
        place = join(url, "labels", _inside(url, id))
        attributes = group_attributes(place)
        ours = attributes.get("casebook") or {}
        axes, infos, _ = _pyramid(place, attributes, bool(ours.get("complete", False)))
        if _shape(infos[0], axes, tuple(a for a in ("z", "y", "x") if a in axes)) != shape:
            raise CaseFormatError(
                f"layer {id!r} of {url} has {infos[0].shape} px, the image {shape}: remove the layer, or draw it "
                "on this image"
            )
        if len(infos) < levels:
            raise CaseFormatError(
                f"layer {id!r} of {url} has {len(infos)} levels, the image {levels}: convert the case, which "
                "rebuilds them"
            )
        fields = {key: value for key, value in (ours.get("layer") or {}).items() if key in Layer.__dataclass_fields__}
        found.append((Layer(**{**fields, "id": id}), axes, infos[:levels], attributes["ome"].get("image-label") or {}))
    return found


def _classes(
    ours: dict[str, Any], layers: list[tuple[Layer, tuple[str, ...], tuple[ArrayInfo, ...], dict[str, Any]]]
) -> tuple[str, ...]:
    """Our own list; for cases of others the values that their labels describe."""
    if "classes" in ours:
        classes = tuple(str(name) for name in ours["classes"])
        if not 2 <= len(classes) <= MAX_CLASSES:
            raise CaseFormatError(f"{len(classes)} classes: 2 to {MAX_CLASSES} were expected; restore the metadata")
        return classes
    names = {0: "background"}
    for *_, document in layers:
        for entry in [*(document.get("colors") or []), *(document.get("properties") or [])]:
            value = int(entry["label-value"])
            if 0 < value < MAX_CLASSES:
                names[value] = str(entry.get("name") or names.get(value) or f"class {value}")
    return tuple(names.get(value, f"class {value}") for value in range(max(1, *names) + 1))
