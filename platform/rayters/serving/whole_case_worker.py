"""Who predicts a whole case: reads, looks and writes block by block, and keeps the job's books. It knows no Ray; an actor holds it.

The layers go beside the annotators' own, named after the model; blocks that an earlier job wrote are left alone.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from casebook import CasebookError, open_cohort
from casebook.location import canonical, join
from rayters.inference.tiling import Tiling
from rayters.inference.weights import Packed, pack
from rayters.inference.work import BlockRow, Blocks, Work, finish_case, plan_work, to_do, whole_cases
from rayters.inference.writing import Output
from rayters.serving.registry import check
from rayters.serving.settings import Settings
from rayters.serving.whole_case import Books


class Worker:
    """One job, from waiting to its end."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.books = settings, Books(settings.storage)

    def run(self, job: dict[str, Any], device: str = "cpu") -> str:
        """Returns the state in which the job ended; what goes wrong is written into its books."""
        id = str(job["id"])
        try:
            state, detail = self._predict(id, job, device)
        except (CasebookError, ValueError, OSError) as error:
            state, detail = "failed", _told(error)
        except Exception as error:
            self.books.note(id, state="failed", detail=f"{type(error).__name__}: tell who runs the server")
            raise
        return str(self.books.note(id, state=state, detail=detail)["state"])

    def _predict(self, id: str, job: dict[str, Any], device: str) -> tuple[str, str]:
        name, _, version = str(job["model"]).partition("@")
        check(self.settings.models, name, version)
        packed = pack([join(canonical(self.settings.models), name, version)])
        cohort = open_cohort(str(job["cohort"]))
        row = next(row for row in cohort.cases if row.case == job["name"])
        alone = replace(cohort, cases=(row,))
        tiling = Tiling(batch_size=self.settings.replicas.tile_batch)
        work = plan_work(packed, alone, tiling=tiling, output=Output(name=name))
        blocks = to_do(work, row.case, row.url)
        self.books.note(id, state="running", total=len(blocks))
        (done,) = whole_cases(self._blocks(id, packed, work, blocks, device))
        done = finish_case(work, row, done)
        return ("failed", done.error[:300]) if done.state == "failed" else ("done", f"layer {name}")

    def _blocks(
        self, id: str, packed: tuple[Packed, ...], work: Work, rows: list[BlockRow], device: str
    ) -> Iterator[BlockRow]:
        predict = Blocks(work, tuple(each.unpack(device) for each in packed))
        for first in range(0, len(rows), 2):
            yield from predict(rows[first : first + 2])
            self.books.note(id, done=min(first + 2, len(rows)))


def _told(error: Exception) -> str:
    """ValueErrors are ours and name no place; a store's error might."""
    if isinstance(error, CasebookError | OSError):
        return "a store did not give, or did not take, a part of this case: try again, or tell who keeps it"
    return str(error)[:300]
