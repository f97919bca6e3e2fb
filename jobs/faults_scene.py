"""A training and a search on a cluster of this machine, and what can be done to them: processes killed, machines lost, disks filled."""

import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import psutil

from rayters.training.salvage import checkpoints, whole_model

JOBS = Path(__file__).parent
SMALL = (
    *("--epochs", "6", "--sampling.patches-per-epoch", "240", "--network.width", "4", "--patch-px", "32", "32"),
    *("--no-baseline", "--crew.pause-steps", "10", "--crew.max-failures", "1000", "--crew.keep", "20"),
)  # fmt: skip
PATIENCE = 300  # seconds, of any wait


@dataclass(kw_only=True)
class Machines:
    """A head without workers, where drivers run, and machines of one CPU each."""

    number: int

    def __post_init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**28}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add() for _ in range(self.number)]
        self.cluster.wait_for_nodes()

    def add(self) -> object:
        """One machine more."""
        return self.cluster.add_node(num_cpus=1, object_store_memory=2**28)

    def lose(self) -> None:
        """SIGKILL to all of the first machine."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)


@contextmanager
def machines(number: int) -> Iterator[Machines]:
    """A cluster for the length of a block."""
    made = Machines(number=number)
    try:
        yield made
    finally:
        made.cluster.shutdown()


@dataclass(kw_only=True)
class Training:
    """`jobs/train.py` as a user calls it, again and again with the same command until it ends well."""

    address: str
    cohort: str
    storage: str
    name: str
    more: tuple[str, ...] = ("--crew.workers", "2")
    starts: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    log: Path = field(default_factory=lambda: Path(tempfile.mkstemp(prefix="rayters-fault-", suffix=".log")[1]))

    @property
    def folder(self) -> str:
        return f"{self.storage}/{self.name}"

    def start(self) -> None:
        """The command."""
        command = [sys.executable, str(JOBS / "train.py"), "--cohort", self.cohort, "--storage", self.storage]
        environment = os.environ | {"RAY_ADDRESS": self.address, "TQDM_DISABLE": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--name", self.name, *SMALL, *self.more], env=environment, stdout=log, stderr=log
            )
        self.starts += 1

    def running(self) -> bool:
        """Whether the command has neither ended nor failed."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL to the driver, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def checkpoints(self) -> list[str]:
        """Those that are whole: a model appears with its run.json."""
        fs, path = fsspec.core.url_to_fs(self.folder)
        fs.invalidate_cache()
        return sorted(fs.glob(f"{path}/checkpoint_*/state.pt"))

    def wait_for_checkpoint(self) -> None:
        """Until there is one more than now."""
        before, deadline = len(self.checkpoints()), time.monotonic() + PATIENCE
        while len(self.checkpoints()) <= before:
            if not self.running() or time.monotonic() > deadline:
                raise RuntimeError(f"the training left no checkpoint, see {self.log}")
            time.sleep(0.05)

    def finish(self) -> None:
        """Wait for the end; where the command fails, the same command again, as a cluster restarts a job."""
        deadline = time.monotonic() + PATIENCE
        while self.process is None or self.process.wait(timeout=PATIENCE) != 0:
            if self.starts > 30 or time.monotonic() > deadline:
                raise RuntimeError(f"the training did not end, see {self.log}")
            self.start()

    def losses(self) -> tuple[dict[str, float], int]:
        """Validation loss of every checkpoint that loads whole, by its URL; and how many do not."""
        models = {url: whole_model(url) for url in checkpoints(self.folder)}
        found = {url: model.measured["validation_loss"] for url, model in models.items() if model}
        return found, len(models) - len(found)


AGENTS = (
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
)  # a machine's own: it dies with them, and losing one is a fault of its own


def processes(kind: str) -> list[psutil.Process]:
    """Ray's processes that this one started whose title holds ``kind``, oldest first; without the agents of machines."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            if kind in title and not title.startswith(AGENTS):
                found.append((process.create_time(), process))
        except psutil.Error:
            continue
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def kill_one(kind: str, choose: Callable[[int], int] = lambda number: 0) -> str:
    """SIGKILL to one of them; its title, or nothing where there is none."""
    alive = processes(kind)
    if not alive:
        return ""
    victim = alive[choose(len(alive))]
    title = " ".join(victim.cmdline())[:60].strip()
    victim.send_signal(signal.SIGKILL)
    return title


def kill_at_random(training: Training, number: int, seed: int) -> list[str]:
    """So many kills, half a second to three seconds apart, of any process of Ray's that works for the training; whom they hit."""
    rng, hit = random.Random(seed), list[str]()
    while len(hit) < number:
        time.sleep(rng.uniform(0.5, 3))
        if not training.running():
            if training.process is not None and training.process.returncode == 0:
                return hit
            training.start()
        if title := kill_one("ray::", rng.randrange):
            hit.append(title)
    return hit


@contextmanager
def small_disk(mebibytes: int) -> Iterator[Path]:
    """A file system of its own that can be filled; needs the right to mount."""
    folder = Path(tempfile.mkdtemp(prefix="rayters-disk-"))
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    """Whether this machine lets us have a small disk."""
    try:
        with small_disk(1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def fill(folder: Path) -> Path:
    """A file that leaves no byte of a small disk.

    Raises:
        RuntimeError: the disk is none of ours.
    """
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.tell() < 2**30:
                file.write(bytes(2**16))
        except OSError:
            return ballast
    ballast.unlink()
    raise RuntimeError(f"{folder} is not the small disk that was mounted there")


def shell(command: str) -> None:
    """The user's own command that stops or starts a server."""
    subprocess.run(shlex.split(command), check=True)
