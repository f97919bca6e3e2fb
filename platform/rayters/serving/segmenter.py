"""Models that answer: what a replica does, without Ray.

Each piece of work gets its own answer or its own refusal: in a batch, one damaged file does not spoil its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from casebook import Case, CasebookError
from casebook.formats import Frame, Opened
from casebook.location import is_local
from rayters.inference.maps import Maps
from rayters.inference.predict import Region, predict_region
from rayters.inference.tiling import Tiling
from rayters.inference.together import predict_together
from rayters.patches.cache import Cache, CachedCase
from rayters.serving.answer import coded
from rayters.serving.refusal import RefusedError
from rayters.serving.registry import Card, ModelError, fetch, read_card
from rayters.serving.settings import Settings
from rayters.serving.upload import decode, examine
from rayters.serving.work import Answer, CaseRegion, Upload, Work
from rayters.training.model import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A model and its card."""

    card: Card
    model: Model


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A decoded upload."""

    pixels: NDArray[Any]
    spacing_um: tuple[float, ...] | None
    frame: Frame | None


class Segmenter:
    """Loads models of one registry and answers with them."""

    def __init__(self, settings: Settings, device: str = "cpu") -> None:
        self.settings, self.device = settings, device

    def load(self, model: str) -> Loaded:
        """model: 'name@version'.

        Raises:
            ModelError: it is not there, or not what its card says.
        """
        name, _, version = model.partition("@")
        card = read_card(self.settings.models, name, version)
        return Loaded(card=card, model=fetch(self.settings.models, card, device=self.device))

    def answer(self, loaded: Loaded, works: Sequence[Work]) -> list[Answer | RefusedError]:
        """One answer, or one refusal, per piece of work, in their order; all of one model."""
        done: list[Answer | RefusedError | None] = [self._region(loaded, w) for w in works]
        uploads = [index for index, each in enumerate(done) if each is None]
        pictures = {index: self._picture(loaded, works[index]) for index in uploads}
        whole = {i: p for i, p in pictures.items() if isinstance(p, Picture)}
        found = self._predicted(loaded, list(whole.values()), [works[i] for i in whole])
        answers = dict(zip(whole, found, strict=True)) | {
            i: p for i, p in pictures.items() if isinstance(p, RefusedError)
        }
        return [answers[index] if each is None else each for index, each in enumerate(done)]

    def _region(self, loaded: Loaded, work: Work) -> Answer | RefusedError | None:
        """The answer to a region of a case; None for an upload."""
        source = work.source
        if not isinstance(source, CaseRegion):
            return None
        try:
            case = source.case
            size = source.size_px0 or case.shapes[0]
            origin = source.origin_px0 or (0,) * len(size)
            box = Region(origin_px0=_same_axes(origin, case.axes), size_px0=_same_axes(size, case.axes))
            self._check_size(prod(size) * case.channels * np.dtype(case.dtype).itemsize)
            maps = predict_region(loaded.model, self._near(case), box, tiling=self._tiling([work]))
            return self._coded(loaded, work, maps, case.spacing_um[0], None)
        except (CasebookError, ValueError, RefusedError) as error:
            return _refusal(error)

    def _near(self, case: Case) -> Case | CachedCase:
        """The case through the cache, where there is one and the case is not on a disk anyway."""
        replicas = self.settings.replicas
        if replicas.cache_folder is None or is_local(case.url):
            return case
        return Cache(folder=replicas.cache_folder, max_bytes=int(replicas.cache_gib * 2**30)).case(case)

    def _picture(self, loaded: Loaded, work: Work) -> Picture | RefusedError:
        """A decoded upload that fits the model."""
        try:
            assert isinstance(work.source, Upload)
            opened = decode(work.source.data, examine(work.source.data, most_bytes=self.settings.limits.pixel_bytes))
            return Picture(pixels=_as_asked(opened, loaded.card), spacing_um=opened.spacing_um, frame=opened.frame)
        except (CasebookError, ValueError, RefusedError) as error:
            return _refusal(error)

    def _predicted(self, loaded: Loaded, pictures: list[Picture], works: list[Work]) -> list[Answer | RefusedError]:
        if not pictures:
            return []
        try:
            maps = predict_together(loaded.model, [p.pixels for p in pictures], tiling=self._tiling(works))
        except ValueError as error:
            if len(pictures) == 1:
                return [_refusal(error)]
            return [one for p, w in zip(pictures, works, strict=True) for one in self._predicted(loaded, [p], [w])]
        return [self._answered(loaded, w, m, p) for w, m, p in zip(works, maps, pictures, strict=True)]

    def _answered(self, loaded: Loaded, work: Work, maps: Maps, picture: Picture) -> Answer | RefusedError:
        try:
            return self._coded(loaded, work, maps, picture.spacing_um, picture.frame)
        except RefusedError as error:
            return error

    def _coded(
        self, loaded: Loaded, work: Work, maps: Maps, spacing_um: tuple[float, ...] | None, frame: Frame | None
    ) -> Answer:
        names, down = loaded.card.annotators, loaded.model.run.downsampling
        return coded(maps, work.want, annotators=names, spacing_um=spacing_um, frame=frame, down=down)

    def _tiling(self, works: Sequence[Work]) -> Tiling:
        """Annotators' maps are computed only when somebody wants one."""
        return Tiling(
            batch_size=self.settings.replicas.tile_batch, annotators=any(w.want.answer == "annotator" for w in works)
        )

    def _check_size(self, pixel_bytes: int) -> None:
        most = self.settings.limits.pixel_bytes
        if pixel_bytes > most:
            raise RefusedError(
                413, f"the region has {pixel_bytes:,} bytes, the limit is {most:,}: ask for less, or start a job"
            )


def _same_axes(values: tuple[int, ...], axes: tuple[str, ...]) -> tuple[int, ...]:
    if len(values) != len(axes):
        raise RefusedError(422, f"{len(values)} numbers for a case with axes {', '.join(axes)}: give one for each")
    return values


def _as_asked(opened: Opened, card: Card) -> NDArray[Any]:
    """The pixels on as many axes as the model has; a lone slice may be given to a model of pictures."""
    pixels = np.asarray(opened.pixels)
    if pixels.ndim == 4 and card.axes == 2 and pixels.shape[1] == 1:
        pixels = pixels[:, 0]
    return pixels


def _refusal(error: Exception) -> RefusedError:
    """What the asker hears: ours as it is; of a store no place, for that is not theirs to know."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, ModelError | ValueError) and not isinstance(error, CasebookError):
        return RefusedError(422, str(error)[:500])
    return RefusedError(502, "the store did not give this case whole: try again, or tell who keeps it")
