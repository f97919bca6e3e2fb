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

os.environ.pop(
    "PYTHONDONTWRITEBYTECODE", None
)  # each of Ray's workers would compile everything anew, seconds of CPU each


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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained checkpoint: grey pictures, two classes, annotators anna and ben, patches of 16 px."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"), seed=0)


def save_tiny_model(folder: Path, *, seed: int) -> Path:
    """Another seed, another model."""
    import torch

    from rayters.methods import AnnotatorConfusion
    from rayters.networks.backbone import UNet
    from rayters.networks.task import Task
    from rayters.training.model import Model, build_net, save_model
    from rayters.training.run import Run

    torch.manual_seed(seed)
    run = Run(method=AnnotatorConfusion(), network=UNet(width=4), patch_px=(16, 16))
    task = Task(channels=1, classes=2, annotators=2, patch_px=(16, 16), mean=(100.0,), std=(50.0,))
    net = build_net(run, task).eval()
    about = {"classes": ("background", "digit"), "annotators": ("anna", "ben"), "measured": {"dice": 0.5}}
    save_model(folder, Model(run=run, task=task, net=net, **about))
    return folder


@pytest.fixture(scope="session")
def another_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_model``, with other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("another"), seed=1)
