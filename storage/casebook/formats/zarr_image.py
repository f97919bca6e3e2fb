"""OME-Zarr 0.4 and 0.5 of others, as a source; their own label images come along as layers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook.case import Case
from casebook.formats.opened import Opened
from casebook.opening import group_attributes, open_case
from casebook.specification import departures


@dataclass(frozen=True, kw_only=True)
class CaseImage:
    """Level 0 of a case."""

    case: Case

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.case.channels, *self.case.shapes[0])

    @property
    def dtype(self) -> str:
        return self.case.dtype

    @property
    def identity(self) -> str:
        return self.case.url

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
        return self.case.read_image(0, origin, size)


@dataclass(frozen=True, kw_only=True)
class CaseLabels:
    """Level 0 of one layer of a case."""

    case: Case
    layer: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.case.shapes[0]

    @property
    def identity(self) -> str:
        return f"{self.case.url}#{self.layer}"

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        planes = self.case.read_labels((self.layer,), 0, origin, size)
        return planes.reshape(size)


def open_zarr(path: str) -> Opened:
    """The image of an OME-Zarr folder, in any store."""
    case = open_case(path)
    stored = CaseImage(case=case)
    small = case.dtype not in ("uint8", "int8", "uint16", "int16")
    pixels: Any = stored.read((0,) * len(case.axes), case.shapes[0]) if small else stored
    notes = {"case": case, "departures": departures(group_attributes(case.url)["ome"])}
    return Opened(pixels=pixels, spacing_um=case.spacing_um[0], notes=notes)
