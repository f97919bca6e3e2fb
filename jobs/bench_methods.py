"""What a method costs: the time of one training step against plain cross-entropy on the same network, and the peak memory on a GPU.

    python jobs/bench_methods.py            batch 8, 256 x 256 px, 5 annotators, 4 classes
    python jobs/bench_methods.py --quick    the same rows on 128 x 128 px

All are timed in turns, so that a busy machine slows all alike; the ratio is that of the medians. The two rows with a history are timed
first and longer; then every method of ``methods.ALL`` as it comes. Every gaze is the fixed one.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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
    quick: bool = False
    json: str | None = None  # write the rows to this file


def main(job: Job) -> None:
    """Times, prints, writes."""
    job = replace(job, side_px=128, repeats=5, repeats_of_all=1) if job.quick else job
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [*confusion_rows(job, device), *rows_of_all(job, device), *memory_rows(job, device)]
    print(rows_table(rows))
    if device.type != "cuda":
        print("Peak memory is not measured on a CPU.")
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
    """Peak memory, on a GPU; none on a CPU."""
    if device.type != "cuda":
        return []
    plain = peak_memory(job, PLAIN, device)
    goals: Mapping[str, tuple[Method, str]] = {
        "confusion": (AnnotatorConfusion(), "<= 1.2"),
        **{kind.__name__: (kind(), "") for kind in methods.ALL},
    }
    return [
        Row(
            row=f"peak memory of a training step, {name} / plain CE",
            value=peak_memory(job, method, device),
            reference=plain,
            unit="GB",
            goal=goal,
        )
        for name, (method, goal) in goals.items()
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


def peak_memory(job: Job, method: Method, device: torch.device) -> float:
    """GB of GPU memory that one step of this method takes at most: its nets, its optimiser and its batch, and nobody else's."""
    before = torch.cuda.memory_allocated()
    step = stepper(job, method, device)
    step()  # the optimiser makes its state, the libraries their workspaces
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
