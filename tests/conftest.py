"""One Ray for the whole session, and the real data beside the project where it is there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# Before anything imports ray: the tests' Ray is private, and its workers see this checkout, not an installed copy.
os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT / 'storage'}",
    "TQDM_DISABLE": "1",
    "OMP_NUM_THREADS": "1",  # torch on every core in every worker would be ten times slower
}


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of four logical CPUs, with the dashboard that nested runs need."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=True, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the project; tests that need it skip without it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared/data beside the project: this test needs real annotators")
    return SHARED
