"""Progress of a training on a cluster, shown where the user is: the leading worker reports to a small actor, the driver draws the bar.

worker --(done, total, text), once a second--> Meter (actor) <--polls-- thread of the driver --> tqdm
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

if TYPE_CHECKING:  # the meter's process imports this file, and has no use for torch
    from torch import Tensor, nn

    from rayters.training.loop import Epoch

REPORT_S, LOOK_S = 1.0, 0.5


class Meter:
    """What the leading worker said last: steps done, steps in all, a few words."""

    def __init__(self) -> None:
        self.said: tuple[int, int, str] = (0, 0, "starting workers")

    def say(self, done: int, total: int, text: str) -> None:
        """Called by the worker, which does not wait for it."""
        self.said = (done, total, text)

    def look(self) -> tuple[int, int, str]:
        """Called by the driver."""
        return self.said


class MeterObserver:
    """Tells the meter, at most once a second; looking at the loss waits for the device, so it is not done more often."""

    def __init__(self, meter: Any, *, steps: int, epochs: int) -> None:
        self.meter, self.steps, self.epochs, self.last = meter, steps, epochs, 0.0

    def on_step(self, attempt: int, epoch: int, step: int, parts: "Mapping[str, Tensor]") -> None:
        """One step on."""
        if time.monotonic() - self.last >= REPORT_S:
            self.last = time.monotonic()
            restarted = f" restart {attempt}" if attempt else ""
            text = f"epoch {epoch + 1}/{self.epochs}{restarted} loss {float(parts['loss']):.3f}"
            self.meter.say.remote(epoch * self.steps + step + 1, self.epochs * self.steps, text)

    def on_pause(self, net: "nn.Module", state: "Mapping[str, Any]") -> None:
        """Nothing to tell."""

    def on_epoch(self, epoch: "Epoch") -> None:
        """The end of an epoch is always told."""
        measured = (
            f"validation loss {epoch.measured['validation_loss']:.3f}, agreement {epoch.measured['agreement']:.2f}"
        )
        text = f"epoch {epoch.epoch + 1}/{self.epochs} {measured}"
        self.meter.say.remote((epoch.epoch + 1) * self.steps, self.epochs * self.steps, text)


@contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """Yields a meter to hand to the workers; its bar is drawn here until the block ends."""
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )  # other machines may be lost
    meter = ray.remote(Meter).options(num_cpus=0, scheduling_strategy=here).remote()
    done = threading.Event()
    drawer = threading.Thread(target=_draw, args=(title, meter, done), daemon=True)
    drawer.start()
    try:
        yield meter
    finally:
        done.set()
        drawer.join()


def _draw(title: str, meter: Any, done: threading.Event) -> None:
    with tqdm(total=1, desc=title, unit="step") as bar:
        while not done.wait(LOOK_S):
            _show(bar, *ray.get(meter.look.remote()))
        _show(bar, *ray.get(meter.look.remote()))


def _show(bar: Any, steps: int, total: int, text: str) -> None:
    bar.total, bar.n = total or None, steps
    bar.set_postfix_str(text, refresh=False)
    bar.refresh()
