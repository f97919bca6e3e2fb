"""What the platform adds to a training: per step, at the start, and after a worker is lost.

    python jobs/bench_training.py            time of a step beside a bare PyTorch loop; start-up; a killed worker; a search
    python jobs/bench_training.py --quick    fewer steps and trials

Both loops train the same net on the same batches in memory, in turns, so that a busy machine slows both; the ratio is that of the medians.
"""

import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional

from rayters.annotators.demo import demo_cohort
from rayters.methods import MajorityVote
from rayters.methods.targets import majority
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.patches.resume import Position
from rayters.patches.sampling import Sampling
from rayters.reports.rows import Row, rows_table, write_rows
from rayters.training.cluster import Crew, train
from rayters.training.connect import connected
from rayters.training.loop import Stream, fit
from rayters.training.model import build_net
from rayters.training.observers import Everyone
from rayters.training.run import Run
from rayters.training.team import Team
from rayters.tuning.space import Space
from rayters.tuning.sweep import run_trials
from rayters.tuning.trial import Bench, run_trial

CHANNELS, CLASSES, ANNOTATORS = 3, 2, 5


@dataclass(frozen=True, kw_only=True)
class Job:
    """The size of the problem."""

    side_px: int = 128
    batch: int = 8
    width: int = 16
    steps: int = 60
    quick: bool = False
    json: str | None = None  # write the rows to this file


def main(job: Job) -> None:
    """Times, prints, writes."""
    job = replace(job, steps=16, side_px=64) if job.quick else job
    platform, bare = step_times(job)
    started, recovered = cluster_times(epochs=3 if job.quick else 6)
    whole, alone, bare_trials = trials_per_hour(number=4 if job.quick else 12, epochs=2 if job.quick else 6)
    rows = [
        Row(
            row=f"time per step, platform / bare PyTorch loop ({job.side_px}^2, batch {job.batch}, width {job.width})",
            value=platform,
            reference=bare,
            unit="s",
            goal="<= 1.05",
        ),
        Row(row="start-up until the first step, two workers on a running Ray", value=started, unit="s"),
        Row(row="from kill -9 of a worker to the next logged step (one in ten is)", value=recovered, unit="s"),
        Row(
            row="search throughput, a bare loop in our sweep / Ray Tune with the same bare function",
            value=alone,
            reference=bare_trials,
            unit="trials/hour",
        ),
        Row(
            row="search throughput, whole trials (read, train, validate, judge) / Ray Tune with a bare loop of as many steps",
            value=whole,
            reference=bare_trials,
            unit="trials/hour",
        ),
    ]
    print(rows_table(rows))
    if job.json:
        write_rows(rows, job.json)


def step_times(job: Job) -> tuple[float, float]:
    """Median seconds between the ends of two steps, of the platform's loop and of a bare one, batch by batch in turns."""
    torch.set_num_threads(1)
    task = Task(channels=CHANNELS, classes=CLASSES, annotators=ANNOTATORS, patch_px=(job.side_px,) * 2)
    run = Run(
        method=MajorityVote(dice=0),
        network=UNet(width=job.width),
        patch_px=task.patch_px,
        epochs=1,
        batch_size=job.batch,
    )
    rng = np.random.default_rng(0)
    arrays = {
        "views": rng.integers(0, 255, (job.batch, 1, CHANNELS, *task.patch_px), dtype=np.uint8),
        "labels": rng.integers(0, CLASSES, (job.batch, ANNOTATORS, *task.patch_px), dtype=np.uint8),
    }
    bare, clock = BareLoop(run, task), Clock()

    def batches(at: Position) -> Iterator[dict[str, Any]]:
        for _ in range(job.steps):
            clock.bare.append(bare.step(arrays))
            clock.mark = time.perf_counter()
            yield arrays

    stream = Stream(left=lambda at: job.steps - at.first_batch, train=batches, validation=lambda: [arrays])
    fit(run, task, stream, clock, team=Team())
    return statistics.median(clock.platform[2:]), statistics.median(clock.bare[2:])


class Clock(Everyone):
    """Notes how long each step of the platform took, from its batch to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.platform: list[float] = []
        self.bare: list[float] = []
        self.mark = 0.0

    def on_step(self, attempt: int, epoch: int, step: int, parts: Mapping[str, Tensor]) -> None:
        """The end of a step."""
        self.platform.append(time.perf_counter() - self.mark)


class BareLoop:
    """What one would write without a platform: the same net, loss, clipping and optimiser."""

    def __init__(self, run: Run, task: Task) -> None:
        torch.manual_seed(0)
        self.net: nn.Module = build_net(run, task).train()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=run.learning_rate)

    def step(self, arrays: Mapping[str, Any]) -> float:
        """Seconds that it took."""
        started = time.perf_counter()
        views, labels = torch.from_numpy(arrays["views"]).float(), torch.from_numpy(arrays["labels"]).long()
        logits = self.net((views - 127) / 74)["logits"]
        loss = functional.cross_entropy(logits, majority(labels, CLASSES))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        return time.perf_counter() - started


def trials_per_hour(*, number: int, epochs: int) -> tuple[float, float, float]:
    """Of the platform's trials; of a bare loop of as many steps in the platform's sweep; and of the same loop as a function of Ray Tune's."""
    from ray import tune

    task = Task(channels=1, classes=2, annotators=ANNOTATORS, patch_px=(64, 64))
    run = Run(
        method=MajorityVote(),
        network=UNet(width=8),
        patch_px=task.patch_px,
        epochs=epochs,
        sampling=Sampling(patches_per_epoch=160),
    )
    rng = np.random.default_rng(0)
    arrays = {
        "views": rng.integers(0, 255, (run.batch_size, 1, 1, 64, 64), dtype=np.uint8),
        "labels": rng.integers(0, 2, (run.batch_size, ANNOTATORS, 64, 64), dtype=np.uint8),
    }

    def bare(*_: Any) -> dict[str, float]:
        torch.set_num_threads(1)
        loop = BareLoop(run, task)
        for _ in range(epochs * 160 // run.batch_size):
            loop.step(arrays)
        return {"dice": 0.0}

    with tempfile.TemporaryDirectory(prefix="rayters-bench-") as folder, connected(cpus=2):
        cohort = demo_cohort(f"{folder}/cohort")
        space = Space(methods=(MajorityVote,))
        bench = Bench(cohort=cohort, space=space, base=run)
        trials = [{"candidate": space.defaults()[0], "seed": seed} for seed in range(number)]
        tuner = tune.Tuner(
            tune.with_resources(bare, {"cpu": 1}),
            param_space={"trial": tune.grid_search(trials)},
            run_config=tune.RunConfig(storage_path=f"{folder}/tune", verbose=0),
        )
        sides = (
            lambda: run_trials(run_trial, trials, Path(folder) / "whole", data=bench),
            lambda: run_trials(bare, trials, Path(folder) / "bare"),
            tuner.fit,
        )
        whole, alone, tuned = (number * 3600 / _seconds(side) for side in sides)
    return whole, alone, tuned


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def cluster_times(*, epochs: int) -> tuple[float, float]:
    """Seconds from the call to the first step, and from a worker's death to the next step that is logged."""
    with tempfile.TemporaryDirectory(prefix="rayters-bench-") as folder, connected():
        cohort = demo_cohort(f"{folder}/cohort")
        run = Run(
            method=MajorityVote(),
            network=UNet(width=4),
            patch_px=(32, 32),
            epochs=epochs,
            sampling=Sampling(patches_per_epoch=240),
        )
        killed: list[float] = []
        killer = threading.Thread(target=_kill_a_worker, args=(Path(folder) / "runs/bench", killed), daemon=True)
        killer.start()
        started = time.time()
        train(run, cohort, storage_path=f"{folder}/runs", name="bench", crew=Crew(workers=2))
        killer.join()
        steps = _step_times(Path(folder) / "runs/bench/tensorboard")
    return steps[0] - started, min(at for at in steps if at > killed[0]) - killed[0]


def _kill_a_worker(run: Path, killed: list[float]) -> None:
    """Once there is a checkpoint."""
    while not list(run.glob("checkpoint_*/run.json")):
        time.sleep(0.02)
    workers = [
        p for p in psutil.Process(os.getpid()).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
    ]
    workers[0].send_signal(signal.SIGKILL)
    killed.append(time.time())


def _step_times(folder: Path) -> list[float]:
    """Wall-clock time of every logged step, in order."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return sorted(event.wall_time for event in events.Scalars("train/loss"))


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
