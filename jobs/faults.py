"""What a training and a search survive: faults done to real processes, what came of them, and how long it took.

    python jobs/faults.py                        every fault that can be had here, about a quarter of an hour on two cores
    python jobs/faults.py --only worker driver   some of them
    python jobs/faults.py --store s3://bucket/faults --stop-store "kill -9 123" --start-store "systemctl start radosgw"

A training is started as users start it, on a cluster of machines of one CPU each (Ray's cluster_utils), and hurt after its first
checkpoint. Its result is held against that of the same training undisturbed. Where the command itself fails, the same command is
given again, as a cluster's job controller does. Filling a disk needs the right to mount one; the store is stopped by your own commands.
"""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fsspec
import tyro

import faults_scene as scene
from rayters.annotators.demo import demo_cohort
from rayters.reports.rows import Row, table, write_rows

ELASTIC = ("--crew.workers", "2", "--crew.fewest", "1", "--crew.cpus-per-worker", "0.75")  # one fits on a machine


@dataclass(frozen=True, kw_only=True)
class Job:
    """Faults, one after the other."""

    only: tuple[str, ...] = ()
    """of worker, driver, machine, elastic, kills, disk, store, search; none: all that can be had"""
    kills: int = 20  # random ones, in one training
    seed: int = 0  # of the random kills
    store: str = ""  # s3://bucket/prefix, with the AWS_* variables set
    stop_store: str = ""  # command that kills the store's server
    start_store: str = ""  # command that starts it again, 20 s later
    json: str | None = None  # write the table's rows to this file


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a fault left. loss, undisturbed: of the validation labels, at the end."""

    fault: str
    happened: str
    loss: float
    undisturbed: float
    seconds: float
    calm_seconds: float
    checkpoints: int


def main(job: Job) -> None:
    """Hurts, waits, prints."""
    folder = Path(tempfile.mkdtemp(prefix="rayters-faults-"))
    cohort = demo_cohort(f"{folder}/cohort").url
    faults = _faults(job, folder, cohort)
    unknown = [name for name in job.only if name not in faults]
    if unknown:
        raise ValueError(f"no fault {', '.join(unknown)} can be had here; these can: {', '.join(faults)}")
    outcomes = []
    for name in job.only or tuple(faults):
        print(f"{name} ...", flush=True)
        outcomes.append(faults[name]())
        print(f"    {outcomes[-1].happened}", flush=True)
    print("\n" + _table(outcomes))
    if job.json:
        write_rows([row for each in outcomes for row in _rows(each)], job.json)


def _faults(job: Job, folder: Path, cohort: str) -> dict[str, Callable[[], Outcome]]:
    """By name, those that can be had on this machine."""
    runs = f"{folder}/runs"
    calm = Calm(cohort=cohort, storage=runs)
    faults: dict[str, Callable[[], Outcome]] = {
        "worker": lambda: _hurt(calm, "kill -9 of a training worker", runs, _kill_worker),
        "driver": lambda: _hurt(calm, "kill -9 of the driver, same command again", runs, _kill_driver),
        "machine": lambda: _hurt(calm, "a machine lost, another comes after 10 s", runs, _replace_machine),
        "elastic": lambda: _hurt(calm, "a machine lost for good, one worker goes on", runs, _lose_machine, ELASTIC),
        "kills": lambda: _hurt(
            calm, f"{job.kills} random kills of Ray's processes", runs, lambda cluster, training: _kills(training, job)
        ),
        "search": lambda: search_outcome(folder, cohort),
    }
    if scene.can_mount():
        faults["disk"] = lambda: _full_disk(calm)
    if job.store and job.stop_store and job.start_store:
        faults["store"] = lambda: _lost_store(calm, job)
    return faults


class Calm:
    """The training without faults, run once when it is first asked for."""

    def __init__(self, cohort: str, storage: str) -> None:
        self.cohort, self.storage = cohort, storage
        self.found: tuple[float, float] | None = None

    def result(self) -> tuple[float, float]:
        """Loss of the last checkpoint, and seconds."""
        if self.found is None:
            with scene.machines(2) as cluster:
                training = scene.Training(
                    address=cluster.cluster.address, cohort=self.cohort, storage=self.storage, name="calm"
                )
                self.found = _loss_and_seconds(training)
        return self.found


def _loss_and_seconds(training: scene.Training) -> tuple[float, float]:
    began = time.monotonic()
    training.finish()
    seconds = time.monotonic() - began
    losses, _ = training.losses()
    return losses[max(losses)], seconds


Hit = Callable[[scene.Machines, scene.Training], str]


def _hurt(calm: Calm, fault: str, storage: str, hit: Hit, crew: tuple[str, ...] = (), cohort: str = "") -> Outcome:
    """One training, hit after its first checkpoint."""
    undisturbed, calm_seconds = calm.result()
    with scene.machines(2) as cluster:
        training = scene.Training(
            address=cluster.cluster.address,
            cohort=cohort or calm.cohort,
            storage=storage,
            name=fault.translate(str.maketrans(" ,'", "---")),
        )
        training.more = crew or training.more
        began = time.monotonic()
        try:
            training.start()
            training.wait_for_checkpoint()
            happened = hit(cluster, training)
            training.finish()
        finally:
            training.kill()
        seconds, (losses, partial) = time.monotonic() - began, training.losses()
    again = f"; the command was given {training.starts} times" if training.starts > 1 else ""
    again += f"; {partial} uploads cut off, which nothing refers to" if partial else ""
    return Outcome(
        fault=fault, happened=happened + again, loss=losses[max(losses)], undisturbed=undisturbed, seconds=seconds,
        calm_seconds=calm_seconds, checkpoints=len(losses),
    )  # fmt: skip


def _kill_worker(cluster: scene.Machines, training: scene.Training) -> str:
    return f"killed {scene.kill_one('RayTrainWorker')}"


def _kill_driver(cluster: scene.Machines, training: scene.Training) -> str:
    training.kill()
    return "killed the driver"


def _lose_machine(cluster: scene.Machines, training: scene.Training) -> str:
    cluster.lose()
    return "two machines, then one"


def _replace_machine(cluster: scene.Machines, training: scene.Training) -> str:
    cluster.lose()
    time.sleep(10)
    cluster.add()
    return "two machines, then one, then two"


def _kills(training: scene.Training, job: Job) -> str:
    hit = scene.kill_at_random(training, job.kills, job.seed)
    kinds = sorted({title.split("(")[0].split(".")[0].removeprefix("ray::") for title in hit})
    return f"{len(hit)} kills, of {', '.join(kinds)}"


def _full_disk(calm: Calm) -> Outcome:
    """The checkpoints' file system is full for ten seconds."""

    def fill(cluster: scene.Machines, training: scene.Training) -> str:
        ballast = scene.fill(disk)
        time.sleep(10)
        ballast.unlink()
        return "no byte free for 10 s"

    with scene.small_disk(64) as disk:
        return _hurt(calm, "the checkpoints' disk full", str(disk), fill)


def _lost_store(calm: Calm, job: Job) -> Outcome:
    """Cohort and checkpoints lie in a store whose server dies, and is back after 20 s."""
    cohort = f"{job.store}/cohort"
    fs, path = fsspec.core.url_to_fs(cohort)
    fs.makedirs(path.split("/")[0], exist_ok=True)
    fs.put(calm.cohort.removeprefix("file://") + "/", path + "/", recursive=True)

    def stop(cluster: scene.Machines, training: scene.Training) -> str:
        scene.shell(job.stop_store)
        time.sleep(20)
        scene.shell(job.start_store)
        return "no answer for 20 s"

    return _hurt(calm, "the object store's server killed", f"{job.store}/runs-{time.time_ns()}", stop, cohort=cohort)


def search_outcome(folder: Path, cohort: str) -> Outcome:
    """A search killed three times, and one that was left alone: the same ranking, or an error."""
    whole, calm_seconds = _searched(folder, cohort, "whole", kills=0)
    killed, seconds = _searched(folder, cohort, "killed", kills=3)
    if killed != whole:
        raise RuntimeError(f"the rankings differ: {killed} and {whole}")
    best = [float(ranking[0][1].split()[0]) for ranking in (killed, whole)]
    return Outcome(
        fault="a search killed three times, --resume each time", happened=f"the same ranking of {len(whole)} candidates",
        loss=1 - best[0], undisturbed=1 - best[1], seconds=seconds, calm_seconds=calm_seconds, checkpoints=0,
    )  # fmt: skip


Ranking = list[list[str]]


def _searched(folder: Path, cohort: str, name: str, *, kills: int) -> tuple[Ranking, float]:
    """The ranking, and the seconds; killed each time that two more trainings were measured."""
    results = folder / "search" / name / "trials"
    command = [
        *(sys.executable, str(scene.JOBS / "tune.py"), "--cohort", cohort, "--storage", str(folder / "search")),
        *("--name", name, "--trials", "4", "--at-once", "2", "--seeds-per-candidate", "2"),
        *("--epochs", "2", "--network.width", "4", "--patch-px", "32", "32", "--max-cpus", "2"),
    ]
    began = time.monotonic()
    for done in range(kills + 1):
        process = subprocess.Popen([*command, *(["--resume"] if done else [])], stdout=subprocess.DEVNULL)
        target = len(list(results.glob("*.json"))) + 2
        while done < kills and process.poll() is None and len(list(results.glob("*.json"))) < target:
            time.sleep(0.05)
        if done < kills:
            process.kill()
        process.wait()
    if process.returncode:
        raise RuntimeError(f"the search '{name}' ended with {process.returncode}")
    return _ranking(folder / "search" / name / "leaderboard.md"), time.monotonic() - began


def _ranking(leaderboard: Path) -> Ranking:
    """Of each candidate: its name, its Dice on validation and on the test split, what it is; not how long it took."""
    head, *lines = [line.split("|") for line in leaderboard.read_text().split("##")[0].splitlines() if line[:1] == "|"]
    kept = [number for number, name in enumerate(head) if name.strip() and not name.strip().startswith("s per")]
    return [[line[number].strip() for number in kept] for line in lines[1:]]


def _table(outcomes: list[Outcome]) -> str:
    head = ["fault", "what happened", "loss / undisturbed", "s", "s undisturbed", "whole checkpoints"]
    lines = [
        [e.fault, e.happened, f"{e.loss:.6f} / {e.undisturbed:.6f}", f"{e.seconds:.0f}", f"{e.calm_seconds:.0f}", str(e.checkpoints)]
        for e in outcomes
    ]  # fmt: skip
    return table(head, lines)


def _rows(each: Outcome) -> list[Row]:
    return [
        Row(row=f"loss after {each.fault} / undisturbed", value=each.loss, reference=each.undisturbed, unit="loss", goal="1"),
        Row(row=f"seconds with {each.fault} / undisturbed", value=each.seconds, reference=each.calm_seconds, unit="s"),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        main(tyro.cli(Job, description=__doc__))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
