"""NRRD and MetaImage through SimpleITK."""

import math
from typing import Any

import numpy as np
import SimpleITK

from casebook.errors import CaseFormatError
from casebook.formats.opened import Frame, Opened

MOST_VOXELS = 2**31


def open_nrrd(path: str) -> Opened:
    """(C, Z, Y, X) or (C, Y, X) with spacing (header in mm) and frame."""
    reader: Any = SimpleITK.ImageFileReader()  # type: ignore[no-untyped-call]
    reader.SetFileName(path)
    reader.ReadImageInformation()
    size = reader.GetSize()
    if math.prod(size) > MOST_VOXELS or not 2 <= len(size) <= 3:
        raise CaseFormatError(
            f"the header claims {size} voxels: two or three axes with at most 2**31 voxels were expected"
        )
    return from_sitk(reader.Execute())


def from_sitk(image: Any) -> Opened:
    """A SimpleITK image, whose own order is (x, y, z)."""
    pixels = SimpleITK.GetArrayFromImage(image)
    planes = np.moveaxis(pixels, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else pixels[None]
    spacing = tuple(s * 1e3 for s in reversed(image.GetSpacing()))
    frame = None
    if image.GetDimension() == 3:
        matrix = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
        frame = Frame(origin=tuple(image.GetOrigin()), matrix=tuple(tuple(row) for row in matrix[:, ::-1].tolist()))
    return Opened(pixels=np.ascontiguousarray(planes), spacing_um=spacing, frame=frame)
