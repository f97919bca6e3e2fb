"""Opening what hospitals and laboratories have: one format per file, each through the library made for it."""

import os

from casebook.errors import CaseFormatError
from casebook.formats.opened import Frame, Opened, check_same_place
from casebook.formats.reading import reading
from casebook.layout import SUFFIXES, suffix

__all__ = ["Frame", "Opened", "check_same_place", "open_image", "reading"]


def open_image(path: str) -> Opened:
    """Opens an image or a mask by its suffix.

    Raises:
        CaseFormatError: the format is not known or the file is damaged; the message says what to do.
    """
    if not os.path.exists(path):
        raise CaseFormatError("the file is gone: it was there when the folder was listed")
    with reading():
        kind = suffix(path)
        opened = _open(path, "/" if os.path.isdir(path) and not kind else kind)
    if 0 in opened.pixels.shape:
        raise CaseFormatError(f"the file holds {opened.pixels.shape} pixels, none: restore it or export it again")
    return opened


def _open(path: str, kind: str) -> Opened:
    if kind in (".png", ".jpg", ".jpeg", ".bmp"):
        from casebook.formats.picture import open_picture

        return open_picture(path)
    if kind in (".tif", ".tiff", ".ome.tif", ".ome.tiff"):
        from casebook.formats.tiff import open_tiff

        return open_tiff(path)
    if kind in (".nii", ".nii.gz"):
        from casebook.formats.nifti import open_nifti

        return open_nifti(path)
    if kind in (".nrrd", ".nhdr", ".mha", ".mhd"):
        from casebook.formats.nrrd import open_nrrd

        return open_nrrd(path)
    if kind in (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms"):
        from casebook.formats.slide import open_slide

        return open_slide(path)
    if kind in (".dcm", "/"):
        from casebook.formats.dicom import open_dicom

        return open_dicom(path)
    if kind in (".zarr", ".ome.zarr"):
        from casebook.formats.zarr_image import open_zarr

        return open_zarr(path)
    raise CaseFormatError(f"files of this kind are not read; known are {' '.join(SUFFIXES)}")
