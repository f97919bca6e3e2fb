"""NIfTI through nibabel."""

from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from casebook.errors import CaseFormatError
from casebook.formats.opened import Frame, Opened

_UM_PER_UNIT = {"mm": 1e3, "micron": 1.0, "meter": 1e6, "unknown": 1e3}
MOST_VOXELS = 2**31


def open_nifti(path: str) -> Opened:
    """(C, Z, Y, X), or (C, Y, X) for a two-dimensional file; the file's (x, y, z) order is turned round, its frame
    kept.
    """
    image: Any = nibabel.load(path)
    shape = image.shape
    if int(np.prod(shape, dtype=object)) > MOST_VOXELS or len(shape) < 2:
        raise CaseFormatError(
            f"the NIfTI claims {shape} voxels: 2 to 2**31 on two or three axes were expected; the header is damaged"
        )
    if len(shape) > 3 and any(n != 1 for n in shape[3:]):
        raise CaseFormatError(f"the NIfTI has {shape} voxels, more than three axes: export one volume per file")
    pixels = np.asanyarray(image.dataobj).reshape(shape[:3])
    planes = _channels(pixels)
    unit = _UM_PER_UNIT[image.header.get_xyzt_units()[0]] if hasattr(image.header, "get_xyzt_units") else 1e3
    spacing = tuple(float(s) * unit for s in image.header.get_zooms()[: pixels.ndim])[::-1]
    frame = None
    if pixels.ndim == 3:
        matrix = np.asarray(image.affine, np.float64)[:3, :3][:, ::-1] * unit / 1e3
        origin = np.asarray(image.affine, np.float64)[:3, 3] * unit / 1e3
        frame = Frame(origin=tuple(origin.tolist()), matrix=tuple(tuple(row) for row in matrix.tolist()))
    axes = "".join(map(str, _codes(image.affine))) if np.isfinite(image.affine).all() else "unknown"
    return Opened(pixels=planes, spacing_um=spacing, frame=frame, notes={"orientation": axes})


def _codes(affine: NDArray[Any]) -> Any:
    return nibabel.orientations.aff2axcodes(affine)  # type: ignore[no-untyped-call]


def _channels(pixels: NDArray[Any]) -> NDArray[Any]:
    """RGB voxels become channels; (x, y, z) becomes (z, y, x)."""
    if pixels.dtype.names:
        return np.stack([pixels[name].T for name in pixels.dtype.names])
    return np.ascontiguousarray(pixels.T)[None]
