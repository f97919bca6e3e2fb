"""What the web application asks of whatever stands behind it: Ray Serve's replicas, or one process for tests and laptops."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from casebook import CasebookError
from rayters.serving.refusal import RefusedError
from rayters.serving.registry import Card, ModelError, current, names, read_card
from rayters.serving.segmenter import Segmenter
from rayters.serving.settings import Settings
from rayters.serving.work import Answer, Work

FRESH_S = 1.0  # a promotion is noticed within so many seconds


class Backend(Protocol):
    """Whoever computes."""

    async def answer(self, work: Work) -> Answer:
        """Raises RefusedError."""

    async def start(self, job: dict[str, Any]) -> None:
        """Begins a whole-case job whose books were opened."""

    async def stop(self, id: str) -> None:
        """Ends a job at once; one that has ended is left alone."""

    async def alive(self, id: str) -> bool:
        """Whether somebody still works on a job."""

    def count(self, route: str, status: int, seconds: float) -> None:
        """One request was served."""

    async def metrics(self) -> str:
        """Everything that was counted, for Prometheus."""


class Catalogue:
    """The promoted models, asked of the registry at most once a second."""

    def __init__(self, registry: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.registry, self.clock = registry, clock
        self._known: dict[str, tuple[float, Any]] = {}

    async def card(self, model: str) -> Card:
        """The promoted version of 'name', or the very version of 'name@version'.

        Raises:
            RefusedError: 404 for a model that is not there, 503 for one that is damaged or whose registry does not answer.
        """
        name, _, version = model.partition("@")
        card: Card = await self._fresh(
            model, lambda: read_card(self.registry, name, version) if version else current(self.registry, name)
        )
        return card

    async def cards(self) -> list[Card]:
        """All promoted versions."""
        cards: list[Card] = await self._fresh("", lambda: [current(self.registry, n) for n in names(self.registry)])
        return cards

    async def _fresh(self, key: str, read: Callable[[], Any]) -> Any:
        then, value = self._known.get(key, (float("-inf"), None))
        if self.clock() - then <= FRESH_S:
            return value
        try:
            value = await asyncio.to_thread(read)
        except (ModelError, CasebookError) as error:
            missing = "checksum" not in str(error) and isinstance(error, ModelError | ValueError)
            detail = (
                "no such model: ask GET /v1/models for those that are served" if missing else "the registry is damaged"
            )
            raise RefusedError(404 if missing else 503, detail) from None
        if len(self._known) > 1000:
            self._known.clear()
        self._known[key] = (self.clock(), value)
        return value


class InProcess:
    """One process that does everything, one answer at a time; whole-case jobs need Ray."""

    def __init__(self, settings: Settings) -> None:
        self.segmenter = Segmenter(settings)
        self.loaded: dict[str, Any] = {}
        self.counted: Counter[tuple[str, int]] = Counter()

    async def answer(self, work: Work) -> Answer:
        found = await asyncio.to_thread(self._answer, work)
        if isinstance(found, RefusedError):
            raise found
        return found

    def _answer(self, work: Work) -> Answer | RefusedError:
        if work.model not in self.loaded:
            self.loaded[work.model] = self.segmenter.load(work.model)
        return self.segmenter.answer(self.loaded[work.model], [work])[0]

    async def start(self, job: dict[str, Any]) -> None:
        raise RefusedError(501, "whole-case jobs need Ray: start the server with jobs/serve.py")

    async def stop(self, id: str) -> None:
        return None

    async def alive(self, id: str) -> bool:
        return False

    def count(self, route: str, status: int, seconds: float) -> None:
        self.counted[(route, status)] += 1

    async def metrics(self) -> str:
        head = "# HELP rayters_requests_total Requests served.\n# TYPE rayters_requests_total counter\n"
        lines = (f'rayters_requests_total{{route="{r}",status="{s}"}} {n}\n' for (r, s), n in self.counted.items())
        return head + "".join(lines)
