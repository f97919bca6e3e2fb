"""The generated slide and volume of bench_stream.py: texture that compresses like the real thing, four annotators."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from casebook import Cohort, Layer, describe_case, open_cohort, write_case, write_cohort

TILE = 2048
ANNOTATORS = ("north", "east", "south", "west")


@lru_cache(maxsize=1)
def tile() -> NDArray[np.uint8]:
    """(3, 2048, 2048): nuclei and stroma as blurred noise, and a camera's noise; zstd makes two thirds of it."""
    rng = np.random.default_rng(0)
    stroma = gaussian_filter(rng.normal(size=(TILE, TILE)), 12, mode="wrap") * 900
    nuclei = np.clip(gaussian_filter(rng.normal(size=(TILE, TILE)), 4, mode="wrap") * 90 - 4, 0, 6) * 10
    colours = [(210, 0.6, 1.2), (150, 1.0, 1.4), (190, 0.7, 0.5)]
    planes = [base + s * stroma - n * nuclei + rng.normal(0, 2, (TILE, TILE)) for base, s, n in colours]
    return np.clip(np.stack(planes), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Slide:
    """An image source for write_case: the tile again and again, rolled otherwise each time."""

    side: int
    dtype: str = "uint8"

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.side, self.side)

    @property
    def identity(self) -> str:
        return f"bench slide {self.side}"

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        out = np.empty((3, *size), np.uint8)
        for y in range(origin[0] // TILE * TILE, origin[0] + size[0], TILE):
            for x in range(origin[1] // TILE * TILE, origin[1] + size[1], TILE):
                rolled = np.roll(tile(), (y // TILE * 371, x // TILE * 911), (1, 2))
                top, left = max(y, origin[0]), max(x, origin[1])
                end, right = min(y + TILE, origin[0] + size[0]), min(x + TILE, origin[1] + size[1])
                part = rolled[:, top - y : end - y, left - x : right - x]
                out[:, top - origin[0] : end - origin[0], left - origin[1] : right - origin[1]] = part
        return out


@dataclass(frozen=True)
class Drawing:
    """A label source: wavy regions, each annotator a little to one side."""

    shape: tuple[int, ...]
    bias: float

    @property
    def identity(self) -> str:
        return f"bench drawing {self.shape} {self.bias}"

    def read(self, origin: tuple[int, ...], size: tuple[int, ...]) -> NDArray[np.uint8]:
        axes = np.ix_(*(np.arange(o, o + n, dtype=np.float32) for o, n in zip(origin, size, strict=True)))
        height = np.sin(axes[-2] / 97 + self.bias) + np.sin(axes[-1] / 131) * np.cos(axes[0] / 301)
        return (height > 0.2).astype(np.uint8)


def slide_cohort(folder: Path, side: int) -> Cohort:
    return _cohort(folder / f"slide{side}", Slide(side))


def volume_cohort(folder: Path, side: int) -> Cohort:
    """int16, smooth with noise as a CT has it."""
    rng = np.random.default_rng(1)
    body = gaussian_filter(rng.normal(size=(side // 4,) * 3).astype(np.float32), 3, mode="wrap") * 4000
    body = body.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    body += rng.normal(0, 12, body.shape).astype(np.float32)
    return _cohort(folder / f"volume{side}", body.astype(np.int16)[None])


def _cohort(folder: Path, image: Any) -> Cohort:
    if (folder / "cohort.parquet").exists():
        return open_cohort(str(folder))
    shape = tuple(image.shape[1:])
    drawings = {Layer(id=name): Drawing(shape, 0.1 * i) for i, name in enumerate(ANNOTATORS)}
    case = write_case(
        str(folder / "case.ome.zarr"),
        image,
        spacing_um=(0.5,) * len(shape),
        classes=("nothing", "thing"),
        layers=drawings,
    )
    row = describe_case(case, split="train", group="one")
    return write_cohort(str(folder), [row], name=folder.name, classes=("nothing", "thing"))
