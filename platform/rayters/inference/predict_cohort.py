"""Whole cohorts on a cluster: blocks through Ray Data, looked at by a pool of actors. The one file of inference that imports ray.data.

cases --flat_map--> blocks that are still to do --map_batches, actors--> read | look | write --> driver --> finish, a task per case
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.data
import torch

from casebook import CaseRow, Cohort
from rayters.inference.predict import members_of
from rayters.inference.weights import Packed
from rayters.inference.work import BLOCKS_PER_CALL, Blocks, Done, Work, finish_case, to_do, whole_cases

SMALL_CPUS = 0.2  # of what plans and finishes a case, beside the workers


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Who predicts."""

    workers: int = 2
    gpu: bool = False  # one GPU per worker
    cpus_per_worker: float = 0.5


def predict_cohort(packed: Sequence[Packed], cohort: Cohort, work: Work, pool: Pool) -> Iterator[Done]:
    """Predicts every case on the Ray that is initialised; yields each when it is finished, in any order.

    A worker or a node that is lost is replaced, and what it had begun is begun again.
    """
    rows = {row.case: row for row in cohort.cases}
    weights = ray.put(tuple(packed))  # held here while anybody needs it
    finish = ray.remote(num_cpus=SMALL_CPUS, max_retries=3)(finish_case)
    finishing: list[Any] = []
    few = _dataset(work, cohort.cases, weights, pool).iter_rows()
    for done in whole_cases(block for row in few for block in json.loads(row["blocks"])):
        finishing.append(finish.remote(work, rows[done.case], done))
        ready, finishing = ray.wait(finishing, num_returns=len(finishing), timeout=0)
        yield from ray.get(ready)
    while finishing:
        ready, finishing = ray.wait(finishing)
        yield from ray.get(ready)


def _dataset(work: Work, rows: Sequence[CaseRow], weights: "ray.ObjectRef[tuple[Packed, ...]]", pool: Pool) -> Any:
    """Rows of blocks that were done."""
    # one case, one task: asked again, a task must answer the same, and what is to do changes when a case is finished
    cases = ray.data.from_items([{"case": row.case, "url": row.url} for row in rows], override_num_blocks=len(rows))
    ds = cases.flat_map(partial(_to_do, work=work), num_cpus=SMALL_CPUS).map(
        Predictor,  # type: ignore[arg-type]  # Ray takes a class of callables as well
        fn_constructor_args=(work, [weights], pool.gpu),
        concurrency=pool.workers,
        num_cpus=pool.cpus_per_worker,
        num_gpus=int(pool.gpu),
    )
    ds.context.target_max_block_size = 1  # one row, one Ray block: else one actor would be given all of a slide
    ds.context.enable_progress_bars = False
    ds.context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # this job's own bar and table say what there is to say
    return ds


def _to_do(row: Mapping[str, Any], work: Work) -> list[dict[str, str]]:
    blocks = to_do(work, str(row["case"]), str(row["url"]))
    few = [blocks[i : i + BLOCKS_PER_CALL] for i in range(0, len(blocks), BLOCKS_PER_CALL)]
    return [{"blocks": json.dumps(each)} for each in few]


class Predictor:
    """An actor that holds the ensemble."""

    def __init__(self, work: Work, weights: "list[ray.ObjectRef[tuple[Packed, ...]]]", gpu: bool) -> None:
        if not gpu:
            torch.set_num_threads(1)  # actors are the parallelism; threads of several would wait for each other
        packed = ray.get(weights[0])
        self.blocks = Blocks(work, members_of(tuple(each.unpack("cuda" if gpu else "cpu") for each in packed)))

    def __call__(self, row: Mapping[str, Any]) -> dict[str, str]:
        """A few blocks."""
        return {"blocks": json.dumps(self.blocks(json.loads(row["blocks"])))}
