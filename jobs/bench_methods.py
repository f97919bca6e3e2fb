"""What a method costs: the time of one training step against plain cross-entropy on the same network, and the peak memory on a GPU.

    python jobs/bench_methods.py            batch 8, 256 x 256 px, 5 annotators, 4 classes
    python jobs/bench_methods.py --quick    the same rows on 128 x 128 px

The two are timed in turns, so that a busy machine slows both; the ratio is that of the medians.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import tyro
from torch import nn

from rayters.gaze import FixedGaze
from rayters.methods import AnnotatorConfusion, MajorityVote, Method
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.reports.rows import Row, rows_table, write_rows


@dataclass(frozen=True, kw_only=True)
class Job:
    """The size of the problem."""

    side_px: int = 256
    batch: int = 8
    annotators: int = 5
    classes: int = 4
    width: int = 16
    repeats: int = 9
    quick: bool = False
    json: str | None = None  # write the rows to this file


def main(job: Job) -> None:
    """Times, prints, writes."""
    job = replace(job, side_px=128, repeats=5) if job.quick else job
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    methods: dict[str, Method] = {
        "plain": MajorityVote(dice=0),
        "confusion": AnnotatorConfusion(),
        "global": AnnotatorConfusion(level="global"),
    }
    steps = {name: stepper(job, method, device) for name, method in methods.items()}
    seconds = timed(steps, job.repeats)
    rows = [
        Row(
            row=f"time of a training step, {title} / plain CE",
            value=seconds[name],
            reference=seconds["plain"],
            unit="s",
            goal=goal,
        )
        for name, title, goal in (
            (
                "confusion",
                f"confusion ({job.annotators} annotators, {job.classes} classes, {job.side_px}^2, batch {job.batch})",
                _goal(device),
            ),
            ("global", "global confusion", ""),
        )
    ]
    if device.type == "cuda":
        peak = {name: peak_memory(step) for name, step in steps.items()}
        rows.append(
            Row(
                row="peak memory of a training step, confusion / plain CE",
                value=peak["confusion"],
                reference=peak["plain"],
                unit="GB",
                goal="<= 1.2",
            )
        )
    print(rows_table(rows))
    if job.json:
        write_rows(rows, job.json)


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

    return step


def timed(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each step, measured in turns after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(repeats + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory(step: Callable[[], None]) -> float:
    """GB of GPU memory that one step allocates at most, all nets of this process included."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 1e9


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
