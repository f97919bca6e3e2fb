"""Scanner files (SVS, NDPI, MRXS, SCN, BIF, VMS) through OpenSlide, read box by box."""

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from casebook.errors import CaseFormatError
from casebook.formats.opened import Opened
from casebook.source import file_identity

_KEPT = (openslide.PROPERTY_NAME_VENDOR, openslide.PROPERTY_NAME_OBJECTIVE_POWER)


@dataclass(frozen=True, kw_only=True)
class Slide:
    """Level 0 of a slide: (3, Y, X) uint8. What the scanner did not see is white."""

    path: str
    shape: tuple[int, ...]
    identity: str
    dtype: str = "uint8"

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
        try:
            region = _open(self.path, os.getpid()).read_region((origin[1], origin[0]), 0, (size[1], size[0]))
        except openslide.OpenSlideError as error:
            _open.cache_clear()  # OpenSlide serves nothing more after its first error
            raise CaseFormatError(
                f"{self.path} is damaged near {origin} px ({error}): copy it again from the scanner"
            ) from error
        pixels = np.asarray(region)
        out = pixels[..., :3].copy()
        out[pixels[..., 3] == 0] = 255
        return np.ascontiguousarray(np.moveaxis(out, -1, 0))


@lru_cache(maxsize=4)
def _open(path: str, process: int) -> Any:
    slide = openslide.OpenSlide(path)
    slide.set_cache(openslide.OpenSlideCache(64 * 2**20))
    return slide


def open_slide(path: str) -> Opened:
    """A slide as a source, with its magnification and the scanner's vendor in the notes."""
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise CaseFormatError(
            f"OpenSlide cannot read it ({error}): copy it again, with all its companion files"
        ) from error
    width, height = slide.dimensions
    per_pixel = [slide.properties.get(name) for name in (openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X)]
    spacing = tuple(float(s) for s in per_pixel if s) if all(per_pixel) else None
    notes = {name: slide.properties[name] for name in _KEPT if name in slide.properties}
    return Opened(
        pixels=Slide(path=path, shape=(3, height, width), identity=file_identity(path)), spacing_um=spacing, notes=notes
    )
