"""PNG, JPEG and BMP through Pillow."""

from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from casebook.errors import CaseFormatError
from casebook.formats.opened import Opened

MOST_PIXELS = 2**30  # decoded at once; larger pictures belong in a tiled format


def open_picture(source: str | IO[bytes]) -> Opened:
    """(C, Y, X), of a path or an open file: grey has one channel; an opaque alpha channel is dropped; palette pictures yield indices."""
    try:
        Image.MAX_IMAGE_PIXELS = None  # our own limit, below, says what to do
        with Image.open(source) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise CaseFormatError(
                    f"the picture claims {picture.height} x {picture.width} px: convert it to a tiled TIFF, which "
                    "is read block by block"
                )
            if picture.width * picture.height == 0:
                raise CaseFormatError("the picture has no pixels: restore it or export it again")
            pixels = np.asarray(picture)
    except UnidentifiedImageError as error:
        raise CaseFormatError("no picture could be recognised in the file: restore it or export it again") from error
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    if planes.shape[0] in (2, 4) and (planes[-1] == planes[-1].max()).all():
        planes = planes[:-1]
    return Opened(pixels=np.ascontiguousarray(planes))
