"""Who watches a training: a progress bar, TensorBoard, several at once."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rayters.training.loop import Epoch, Observer


class Everyone:
    """Passes all news on to several observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def on_step(self, attempt: int, epoch: int, step: int, parts: Mapping[str, Tensor]) -> None:
        """To each."""
        for observer in self.observers:
            observer.on_step(attempt, epoch, step, parts)

    def on_pause(self, net: nn.Module, state: Mapping[str, Any]) -> None:
        """To each."""
        for observer in self.observers:
            observer.on_pause(net, state)

    def on_epoch(self, epoch: Epoch) -> None:
        """To each."""
        for observer in self.observers:
            observer.on_epoch(epoch)


class Bar:
    """A progress bar over the steps of one attempt; ``make`` is tqdm or Ray's, which travels from a worker to the driver."""

    def __init__(self, make: Callable[..., Any], *, title: str, steps: int, epochs: int) -> None:
        self.make, self.title, self.steps, self.epochs = make, title, steps, epochs
        self.bar: Any = None
        self.attempt, self.done, self.last_look = -1, 0, 0.0

    def on_step(self, attempt: int, epoch: int, step: int, parts: Mapping[str, Tensor]) -> None:
        """One step on; the loss is fetched from the device at most once a second."""
        if attempt != self.attempt:
            self._open(attempt, epoch * self.steps + step)
        self.bar.update(1)
        if time.monotonic() - self.last_look > 1:
            self.last_look = time.monotonic()
            self.bar.set_description(f"{self.title} epoch {epoch + 1}/{self.epochs} loss {float(parts['loss']):.3f}")

    def on_pause(self, net: nn.Module, state: Mapping[str, Any]) -> None:
        """Nothing to tell."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Closes the bar with the last epoch."""
        if epoch.state["place"]["end"]:
            self.bar.close()

    def _open(self, attempt: int, done: int) -> None:
        if self.bar is not None:
            self.bar.close()
        self.attempt = attempt
        title = self.title if attempt == 0 else f"{self.title} (restart {attempt})"
        self.bar = self.make(total=self.steps * self.epochs, desc=title)
        self.bar.update(done)


class TensorBoard:
    """Writes the parts of the loss every ``every`` steps and the measurements of every epoch under ``folder``."""

    def __init__(self, folder: Path, *, steps: int, every: int = 10) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import; only the leader wants it

        self.writer: Any = SummaryWriter(str(folder))
        self.steps, self.every = steps, every

    def on_step(self, attempt: int, epoch: int, step: int, parts: Mapping[str, Tensor]) -> None:
        """Parts of the loss, by step over the whole attempt."""
        if step % self.every == 0:
            for name, value in parts.items():
                self.writer.add_scalar(f"train{attempt or ''}/{name}", float(value), epoch * self.steps + step)

    def on_pause(self, net: nn.Module, state: Mapping[str, Any]) -> None:
        """Nothing to tell."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Measurements, by epoch."""
        for name, value in epoch.measured.items():
            self.writer.add_scalar(f"validation{epoch.attempt or ''}/{name}", value, epoch.epoch)
        self.writer.flush()
