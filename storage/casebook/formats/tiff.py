"""TIFF through tifffile: any dtype, any number of channels."""

import os
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from casebook.errors import CaseFormatError
from casebook.formats.opened import Opened

MOST_PIXELS = 2**30


def open_tiff(path: str) -> Opened:
    """(C, Y, X) or (C, Z, Y, X): tifffile names the axes, S (samples) and C are channels."""
    with tifffile.TiffFile(path) as tiff:
        if not tiff.series:
            raise CaseFormatError("the TIFF holds no picture: restore it or export it again")
        series = tiff.series[0]
        if series.size > MOST_PIXELS * 4:
            raise CaseFormatError(f"the TIFF claims {series.shape} pixels in one plane: save it tiled")
        _check_promise(path, series)
        axes, pixels = series.axes, series.asarray()
        spacing = _spacing(tiff)
    planes = _ordered(pixels, axes)
    return Opened(pixels=planes, spacing_um=spacing if spacing and len(spacing) == planes.ndim - 1 else None)


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
