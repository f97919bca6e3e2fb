"""The blocks of a slide, written by all machines of a Ray cluster.

Ray tasks and not Dask-on-Ray. The blocks of a round are independent, so there is no graph to walk; Dask-on-Ray submits all of
them at once and counts a block as done when it was submitted (Ray 2.60), so that a bar would be full before the first is written.
A block may be written twice, to the same bytes, so a lost worker or machine costs its blocks and nothing else: Ray runs them again.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ray

import casebook
from casebook.one_pass import Task

RETRIES = 10  # lost workers per block; an error that the block itself raises is never tried again


def connect(address: str) -> Callable[[Callable[..., None], Sequence[Task], Callable[[], None]], None]:
    """Joins the cluster, whose machines get this casebook, and returns what `write_case` takes as its scheduler.

    The source and the target must be places that all machines reach, with the credentials of their own environment.
    """
    ray.init(address=address, log_to_driver=False, runtime_env={"py_modules": [str(Path(casebook.__file__).parent)]})
    return write_blocks


def write_blocks(function: Callable[..., None], tasks: Sequence[Task], count: Callable[[], None]) -> None:
    """Calls the function with every task on some machine; two per CPU are under way, whatever the slide's size."""
    remote = ray.remote(max_retries=RETRIES)(function)
    jobs = {id(job): ray.put(job) for job, *_ in tasks}  # sent once, and not with each block
    calls: Iterator[Any] = (remote.remote(jobs[id(job)], *which) for job, *which in tasks)
    running: list[Any] = []
    while True:
        room = 2 * int(ray.cluster_resources().get("CPU", 1)) - len(running)
        running += islice(calls, max(0, room))
        if not running:
            return
        done, running = ray.wait(running)
        for ended in done:
            _check(ended)
            count()


def _check(ended: Any) -> None:
    """Raises what the block raised, as if it had run here."""
    try:
        ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
