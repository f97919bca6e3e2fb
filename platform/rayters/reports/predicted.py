"""What a model left on disk, read back on the grid of a case, whatever its own: the other side of inference/writing.py.

Shapes: K classes, A annotators, S the spatial axes of the case at the level that is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook import Case, CaseNotFoundError, Cohort, open_case
from casebook.location import join
from rayters.inference.maps import Floats

MOST_PIXELS = {2: 2**22, 3: 2**24}  # of the level that is compared: finer outlines than a viewer shows decide nothing


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """One prediction of a cohort. folder: of a cohort of its own (--to), or None where it lies beside the cases."""

    name: str
    layer: str = "rayters"
    folder: str | None = None

    def labels(self, case: Case, name: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
        """(*S) the consensus; None where this case was not predicted."""
        return self._layer(self._host(case, name), self.layer, shape)

    def drawn(
        self, case: Case, name: str, annotators: Sequence[str], shape: tuple[int, ...]
    ) -> dict[str, NDArray[np.uint8]]:
        """What each annotator would draw, (*S) each; without those that the model says nothing about."""
        host = self._host(case, name)
        found = {a: self._layer(host, f"{self.layer}-{a}", shape) for a in annotators}
        return {a: labels for a, labels in found.items() if labels is not None}

    def posterior(self, cohort: Cohort, name: str, shape: tuple[int, ...]) -> Floats | None:
        """(K, *S) float32, sums to 1 over K up to rounding to 255 steps; None for a layer without one, as a fused one is."""
        url = (
            join(cohort.url, "predictions", self.layer, name, "posterior.ome.zarr")
            if self.folder is None
            else join(self.folder, "cases", f"{name}.ome.zarr")
        )
        try:
            image = open_case(url)
        except CaseNotFoundError:
            return None
        level = level_like(image.shapes, shape)
        stored = image.read_image(level, (0,) * len(shape), image.shapes[level]).astype(np.float32)
        seen = on_grid(stored, shape)
        return np.asarray(seen / np.maximum(seen.sum(axis=0, keepdims=True), 1), dtype=np.float32)

    def _host(self, case: Case, name: str) -> Case | None:
        if self.folder is None:
            return case
        try:
            return open_case(join(self.folder, "cases", f"{name}.ome.zarr"))
        except CaseNotFoundError:
            return None

    def _layer(self, host: Case | None, layer: str, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
        if host is None or layer not in {each.id for each in host.layers}:
            return None
        level = level_like(host.shapes, shape)
        plane = host.read_labels((layer,), level, (0,) * len(shape), host.shapes[level])[0]
        return np.asarray(on_grid(plane[None], shape)[0], dtype=np.uint8)


def parse(text: str) -> Predicted:
    """``NAME`` (a layer beside the cases), ``TITLE=NAME``, or ``TITLE=FOLDER`` of a cohort of its own.

    >>> parse("rayters").layer, parse("U-Net=unet").name, parse("mine=/predicted").folder
    ('rayters', 'U-Net', '/predicted')
    """
    title, separator, where = text.partition("=")
    where = where if separator else title
    if "/" in where:
        return Predicted(name=title, folder=where)
    return Predicted(name=title, layer=where)


def level_to_compare(case: Case, most_pixels: int | None = None) -> int:
    """The finest level of at most MOST_PIXELS."""
    most = most_pixels or MOST_PIXELS[len(case.shapes[0])]
    fit = [level for level, shape in enumerate(case.shapes) if np.prod(shape) <= most]
    return fit[0] if fit else len(case.shapes) - 1


def level_like(shapes: tuple[tuple[int, ...], ...], shape: tuple[int, ...]) -> int:
    """The coarsest level that is not coarser than ``shape``; the finest if none is as fine."""
    fine = [level for level, each in enumerate(shapes) if all(a >= b for a, b in zip(each, shape, strict=True))]
    return fine[-1] if fine else 0


def on_grid(maps: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """(N, *any) -> (N, *shape), the nearest pixel of the same field."""
    for axis, (have, want) in enumerate(zip(maps.shape[1:], shape, strict=True), start=1):
        if have != want:
            nearest = np.minimum(((np.arange(want) + 0.5) * have / want).astype(np.int64), have - 1)
            maps = maps.take(nearest, axis=axis)
    return maps
