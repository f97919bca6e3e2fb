"""Joins the Ray that a job was submitted to, or starts a private one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def connected(*, cpus: int | None = None, dashboard: bool = False) -> Iterator[None]:
    """Ray for the length of a block; only what was started here is stopped.

    ``RAY_ADDRESS`` in the environment, which `ray job submit` sets, names the cluster to join. Otherwise a private Ray is started:
    with at least four logical CPUs, since on two the readers and two workers at half a CPU would wait for each other for ever.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Arrow's uploads end in a checksum that older stores beside AWS refuse (411)
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(
            address="local",
            num_cpus=cpus or max(4, os.cpu_count() or 1),
            include_dashboard=dashboard,
            logging_level=logging.WARNING,
            log_to_driver=False,  # what workers have to tell arrives through progress.py and exceptions
        )
    try:
        yield
    finally:
        ray.shutdown()
