"""Where pixels come from while a case is written: anything whose boxes can be read one at a time.

A source is picklable (a path and a shape, never an open file), so that the blocks of one slide may be written by
many processes.
"""

import hashlib
import os
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from casebook.errors import CaseFormatError
from casebook.labels import IGNORE

STORED_DTYPES = ("uint8", "int8", "uint16", "int16")


@runtime_checkable
class ImageSource(Protocol):
    """An image: shape (C, *S), dtype one of STORED_DTYPES."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def identity(self) -> str:
        """Changes when the pixels do, so that an interrupted write resumes only from the same source."""
        ...

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
        """(C, *size) from the spatial origin, level-0 pixels."""
        ...


@runtime_checkable
class LabelSource(Protocol):
    """A label map: shape (*S), values 0..K-1 and IGNORE."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def identity(self) -> str: ...
    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        """(*size) uint8 from the origin, level-0 pixels."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayImage:
    """An image that is already in memory."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def identity(self) -> str:
        return _digest(self.array)

    @property
    def dtype(self) -> str:
        return self.array.dtype.name

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
        return self.array[(slice(None), *(slice(o, o + s) for o, s in zip(origin, size, strict=True)))]


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayLabels:
    """A label map that is already in memory."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def identity(self) -> str:
        return _digest(self.array)

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        box = self.array[tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))]
        return box if box.dtype == np.uint8 else _narrow(box)


def _digest(array: NDArray[Any]) -> str:
    """A hash of the pixels."""
    digest = hashlib.blake2b(digest_size=16)
    for part in array:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def file_identity(path: str) -> str:
    """For sources that are files."""
    state = os.stat(path)
    return f"{path}:{state.st_size}:{state.st_mtime_ns}"


def _narrow(box: NDArray[Any]) -> NDArray[np.uint8]:
    if box.size and (not np.isfinite(box).all() or (box != np.trunc(box)).any() or box.min() < 0 or box.max() > IGNORE):
        raise CaseFormatError(
            f"label values {box.min()}..{box.max()} of type {box.dtype} are not whole numbers in 0..255: name the "
            "classes first"
        )
    return box.astype(np.uint8)


def as_image(image: Any) -> ImageSource:
    """An array or a source as a source.

    Raises:
        CaseFormatError: a dtype that a case does not hold.
    """
    source = (
        ArrayImage(array=np.asarray(image))
        if isinstance(image, np.ndarray) or not isinstance(image, ImageSource)
        else image
    )
    if source.dtype not in STORED_DTYPES:
        raise CaseFormatError(
            f"the image is {source.dtype}, a case holds {', '.join(STORED_DTYPES)}: map its range to uint16 first "
            "(jobs/ingest.py --floats does, and records slope and intercept)"
        )
    if len(source.shape) not in (3, 4) or min(source.shape) < 1:
        raise CaseFormatError(f"the image has shape {source.shape}, (C, Y, X) or (C, Z, Y, X) was expected")
    return source


def as_labels(labels: Any) -> LabelSource:
    """An array or a source as a source."""
    return (
        ArrayLabels(array=np.asarray(labels))
        if isinstance(labels, np.ndarray) or not isinstance(labels, LabelSource)
        else labels
    )


def check_labels(block: NDArray[np.uint8], classes: tuple[str, ...], layer: str) -> NDArray[np.uint8]:
    """The block itself, once every value is a class or IGNORE."""
    if not block.size or int(block.max()) < len(classes):
        return block
    present = np.flatnonzero(np.bincount(block.reshape(-1), minlength=256))
    if strange := [int(value) for value in present if value >= len(classes) and value != IGNORE]:
        shown = ", ".join(str(v) for v in strange[:6]) + (" ..." if len(strange) > 6 else "")
        raise CaseFormatError(
            f"layer {layer!r} holds values {shown}, but the classes are 0..{len(classes) - 1} "
            f"({', '.join(classes)}) and IGNORE ({IGNORE}): "
            "name every class, or map the values"
        )
    return block
