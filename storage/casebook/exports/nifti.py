"""A label volume, or a map, as NIfTI."""

from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from casebook.formats.opened import Frame


def write_nifti(path: str, pixels: NDArray[Any], spacing_um: tuple[float, ...], frame: Frame | None = None) -> None:
    """pixels: (Z, Y, X), or (Y, X) for a picture. frame: of the image that it belongs to; without one the axes are those of the patient.

    The file is in millimetres and in NIfTI's own frame, right-anterior-superior.
    """
    matrix, origin = np.diag([s / 1e3 for s in spacing_um]), np.zeros(len(spacing_um))
    if frame is not None:
        matrix, origin = np.array(frame.matrix), np.array(frame.origin)
    affine = np.eye(4)
    axes = len(spacing_um)
    affine[:axes, :axes] = matrix[:, ::-1] if frame is not None else matrix[::-1, ::-1]
    affine[:axes, 3] = origin
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # from DICOM's left-posterior-superior
    image: Any = nibabel.Nifti1Image(np.ascontiguousarray(pixels.T), affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
