"""TIFF through tifffile: any dtype, any number of channels."""

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from casebook.errors import CaseFormatError
from casebook.formats.opened import Opened
from casebook.formats.reading import reading
from casebook.source import file_identity

MOST_PIXELS = 2**30
LAZY_PIXELS = 2**26  # larger tiled files are read box by box


def open_tiff(path: str) -> Opened:
    """(C, Y, X) or (C, Z, Y, X): tifffile names the axes, S (samples) and C are channels."""
    with tifffile.TiffFile(path) as tiff:
        if not tiff.series:
            raise CaseFormatError("the TIFF holds no picture: restore it or export it again")
        series: Any = tiff.series[0]
        _check_promise(path, series)
        if series.size > LAZY_PIXELS and series.pages[0].is_tiled and set(series.axes) <= set("CSYX"):
            return Opened(pixels=_lazy(path, series), spacing_um=_spacing(tiff))
        if series.size > 4 * MOST_PIXELS:
            raise CaseFormatError(f"the TIFF has {series.shape} values that must be read at once: save it tiled")
        axes, pixels = series.axes, series.asarray()
        spacing = _spacing(tiff)
    planes = _ordered(pixels, axes)
    return Opened(pixels=planes, spacing_um=spacing if spacing and len(spacing) == planes.ndim - 1 else None)


@dataclass(frozen=True, kw_only=True)
class TiledTiff:
    """A large tiled TIFF, (C, Y, X), read box by box."""

    path: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    identity: str

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
        where = {"Y": slice(origin[0], origin[0] + size[0]), "X": slice(origin[1], origin[1] + size[1])}
        box = tuple(where.get(axis, slice(None)) for axis in self.axes)
        with reading(self.path):
            return _ordered(np.asarray(_pixels(self.path, os.getpid())[box]), self.axes)


@lru_cache(maxsize=4)
def _pixels(path: str, process: int) -> Any:
    return zarr.open_array(tifffile.imread(path, aszarr=True, series=0, level=0), mode="r")


def _lazy(path: str, series: Any) -> TiledTiff:
    sides = dict(zip(series.axes, series.shape, strict=True))
    channels = math.prod(n for axis, n in sides.items() if axis in "CS")
    return TiledTiff(
        path=path,
        axes=series.axes,
        shape=(channels, sides["Y"], sides["X"]),
        dtype=series.dtype.name,
        identity=file_identity(path),
    )


def _check_promise(path: str, series: Any) -> None:
    """A header that promises a thousand times more than the file could hold is damaged or hostile."""
    if series.nbytes > 2**28 and series.nbytes > 1500 * os.path.getsize(path):
        raise CaseFormatError(
            f"the TIFF of {os.path.getsize(path)} bytes claims {series.nbytes} bytes of pixels: it is damaged"
        )


def _ordered(pixels: NDArray[Any], axes: str) -> NDArray[Any]:
    """(C, Y, X) or (C, Z, Y, X) from the axes that tifffile names."""
    names = list(axes)
    for axis in [a for a in names if a not in "CSZYX"]:
        where = names.index(axis)
        if pixels.shape[where] != 1 and axis in "QI" and "Z" not in names:
            names[where] = "Z"  # unnamed pages are slices
        elif pixels.shape[where] != 1:
            raise CaseFormatError(
                f"the TIFF has {pixels.shape[where]} entries on axis {axis!r}: export one of them per file"
            )
        else:
            pixels = pixels.squeeze(where)
            names.pop(where)
    spatial = [a for a in "ZYX" if a in names]
    channels = [a for a in names if a in "CS"]
    ordered = pixels.transpose([names.index(a) for a in [*channels, *spatial]])
    return np.ascontiguousarray(ordered.reshape(-1, *ordered.shape[len(channels) :]))


def _spacing(tiff: Any) -> tuple[float, ...] | None:
    """Micrometres per pixel where the writer surely meant it: OME-XML or a resolution per centimetre."""
    if tiff.ome_metadata:
        document = tifffile.xml2dict(tiff.ome_metadata)
        image = document.get("OME", {}).get("Image", {})
        pixels = (image[0] if isinstance(image, list) else image).get("Pixels", {})
        sizes = [pixels.get(f"PhysicalSize{a}") for a in "ZYX"]
        if any(pixels.get(f"PhysicalSize{a}Unit", "µm") != "µm" for a in "ZYX"):
            return None
        return tuple(float(s) for s in sizes if s) or None
    tags = tiff.pages[0].tags
    if "ResolutionUnit" in tags and int(tags["ResolutionUnit"].value) == 3:
        per_cm = [tags[name].value for name in ("YResolution", "XResolution") if name in tags]
        if len(per_cm) == 2 and all(v[0] and v[1] for v in per_cm):
            return tuple(1e4 * v[1] / v[0] for v in per_cm)
    return None
