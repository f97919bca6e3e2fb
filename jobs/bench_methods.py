"""What a method costs: the time of one training step against plain cross-entropy on the same network, and its peak memory.

    python jobs/bench_methods.py            batch 8, 256 x 256 px, 5 annotators, 4 classes
    python jobs/bench_methods.py --quick    the same rows on 64 x 64 px

All are timed in turns, so that a busy machine slows all alike; the ratio is that of the medians. The two rows with a history are timed
first and longer; then every method of ``methods.ALL`` as it comes. Every gaze is the fixed one. On a GPU memory is what its allocator
gave at most; on a CPU, of the confusions of single pixels only, by how much a step raises the peak of a new process.
"""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import nn

from rayters import methods
from rayters.gaze import FixedGaze
from rayters.methods import AnnotatorConfusion, MajorityVote, Method
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.reports.rows import Row, rows_table, write_rows

PLAIN = MajorityVote(dice=0)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The size of the problem."""

    side_px: int = 256
    batch: int = 8
    annotators: int = 5
    classes: int = 4
    width: int = 16
    repeats: int = 9
    repeats_of_all: int = 5  # of each method in ``methods.ALL``
    processes: int = 3  # of a CPU's memory, whose peak differs by a tenth from one to the next
    quick: bool = False
    json: str | None = None  # write the rows to this file


def main(job: Job) -> None:
    """Times, prints, writes."""
    job = replace(job, side_px=64, repeats=5, repeats_of_all=1, processes=1) if job.quick else job
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [*confusion_rows(job, device), *rows_of_all(job, device), *memory_rows(job, device)]
    print(rows_table(rows))
    if job.json:
        write_rows(rows, job.json)


def confusion_rows(job: Job, device: torch.device) -> list[Row]:
    """The pixel-wise confusion, which has a goal, and the global one."""
    steps: dict[str, Method] = {
        "plain": PLAIN,
        "confusion": AnnotatorConfusion(),
        "global": AnnotatorConfusion(level="global"),
    }
    seconds = timed({name: stepper(job, method, device) for name, method in steps.items()}, job.repeats, warm_up=2)
    size = f"{job.annotators} annotators, {job.classes} classes, {job.side_px}^2, batch {job.batch}"
    return [
        time_row(f"confusion ({size})", seconds["confusion"], seconds["plain"], goal=_goal(device)),
        time_row("global confusion", seconds["global"], seconds["plain"]),
    ]


def rows_of_all(job: Job, device: torch.device) -> list[Row]:
    """Every method as it comes."""
    named = {kind.__name__: stepper(job, kind(), device) for kind in methods.ALL}
    seconds = timed({"plain": stepper(job, PLAIN, device), **named}, job.repeats_of_all, warm_up=1)
    return [time_row(name, seconds[name], seconds["plain"]) for name in named]


def time_row(title: str, seconds: float, plain: float, *, goal: str = "") -> Row:
    """One step of a method beside one of plain cross-entropy."""
    row = f"time of a training step, {title} / plain CE"
    return Row(row=row, value=seconds, reference=plain, unit="s", goal=goal)


def memory_rows(job: Job, device: torch.device) -> list[Row]:
    """Peak memory of one step: of every method on a GPU, of the confusions of single pixels on a CPU."""
    on_gpu = device.type == "cuda"
    peak = gpu_memory if on_gpu else process_memory
    compared: dict[str, Method] = {
        "confusion": AnnotatorConfusion(),
        "low-rank confusion": AnnotatorConfusion(level="low_rank"),
    }
    compared |= {kind.__name__: kind() for kind in methods.ALL} if on_gpu else {}
    goals = {"confusion": "<= 1.2"} if on_gpu else {}
    plain = peak(job, PLAIN)
    return [
        Row(
            row=f"peak memory of a training step, {name} / plain CE",
            value=peak(job, method),
            reference=plain,
            unit="GB",
            goal=goals.get(name, ""),
        )
        for name, method in compared.items()
    ]


def _goal(device: torch.device) -> str:
    return "<= 1.05" if device.type == "cuda" else "<= 1.15"


def stepper(job: Job, method: Method, device: torch.device) -> Callable[[], None]:
    """One training step of a method, each time on the same batch."""
    torch.manual_seed(0)
    task = Task(channels=3, classes=job.classes, annotators=job.annotators, patch_px=(job.side_px, job.side_px))
    net: nn.Module = method.build(task, lambda: FixedGaze().build(task, UNet(width=job.width))).to(device).train()
    optimizer = torch.optim.AdamW(net.parameters())
    views = torch.randn(job.batch, 1, 3, *task.patch_px, device=device)
    labels = torch.randint(job.classes, (job.batch, job.annotators, *task.patch_px), device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            outputs = net(views, labels)
        loss = method.loss({name: value.float() for name, value in outputs.items()}, labels, 0.9).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        method.after_step(net, 0.9)

    return step


def timed(steps: Mapping[str, Callable[[], None]], repeats: int, *, warm_up: int) -> dict[str, float]:
    """Median seconds of each step, measured in turns after ``warm_up`` rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(repeats + warm_up):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_ >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def gpu_memory(job: Job, method: Method) -> float:
    """GB of GPU memory that one step of this method takes at most: its nets, its optimiser and its batch, and nobody else's."""
    before = torch.cuda.memory_allocated()
    step = stepper(job, method, torch.device("cuda"))
    step()  # the optimiser makes its state, the libraries their workspaces
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def process_memory(job: Job, method: Method) -> float:
    """GB by which two steps of this method raise the peak of a new process: the median of several."""
    spawn = multiprocessing.get_context("spawn")  # not a fork, which would have this process' peak
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as one_by_one:
        return statistics.median(one_by_one.map(_raised_by, [job] * job.processes, [method] * job.processes))


def _raised_by(job: Job, method: Method) -> float:
    before = _peak_kib()
    step = stepper(job, method, torch.device("cpu"))
    for _ in range(2):
        step()
    return (_peak_kib() - before) * 1024 / 1e9


def _peak_kib() -> int:
    """The most resident memory that this process has had (Linux); that of getrusage begins with its parent's."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line)


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
