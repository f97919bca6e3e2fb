"""Opening what hospitals and laboratories have: one format per file, each through the library made for it."""

import os

from casebook.errors import CasebookError, CaseFormatError
from casebook.formats.opened import Frame, Opened, check_same_place
from casebook.layout import SUFFIXES, suffix

__all__ = ["Frame", "Opened", "check_same_place", "open_image"]


def open_image(path: str) -> Opened:
    """Opens an image or a mask by its suffix.

    Raises:
        CaseFormatError: the format is not known or the file is damaged; the message says what to do.
    """
    if not os.path.exists(path):
        raise CaseFormatError("the file is gone: it was there when the folder was listed")
    try:
        return _open(path, suffix(path))
    except CasebookError:
        raise
    except ImportError as error:
        raise CaseFormatError(
            f"{error.name or error} is needed for this format: pip install 'rayters[formats]'"
        ) from error
    except MemoryError as error:
        raise CaseFormatError(
            "the file claims more pixels than fit into memory: it is damaged, or convert it to a tiled format"
        ) from error
    except Exception as error:  # image libraries raise anything from struct.error to SyntaxError on damaged files
        text = (str(error).splitlines() or [""])[0][:160]
        raise CaseFormatError(
            f"the file cannot be read ({type(error).__name__}: {text}): restore it or export it again"
        ) from error


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
    raise CaseFormatError(f"files of this kind are not read; known are {' '.join(SUFFIXES)}")
