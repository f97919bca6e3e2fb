"""Experiment trackers, by Ray's own integrations: MLflow and Weights & Biases, each an extra of the package.

Where they write, they ask the environment, as everywhere: MLFLOW_TRACKING_URI (a folder or a server), WANDB_API_KEY and WANDB_MODE.
On a cluster these variables belong into the job's runtime environment. TensorBoard's files are always written and need nothing.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from rayters.training.loop import Epoch, Observer
from rayters.training.run import Run, to_json

Tracker = Literal["mlflow", "wandb"]
EXPERIMENT = "rayters"
EVERY = 10  # steps


def refuse_absent(track: Sequence[Tracker]) -> None:
    """Raises:
    ValueError: for a tracker that is not installed, before anything is trained.
    """
    for name in track:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--track {name}: {name} is not installed; pip install 'rayters[{name}]'")


def trackers(track: Sequence[Tracker], run: Run, name: str, *, steps: int) -> list[Observer]:
    """An observer for each; called by the worker that leads. name: of the run; steps: of an epoch."""
    settings = flat(to_json(run))
    return [Tracked(_LOGS[each](settings, name), steps=steps) for each in track]


def sweep_callbacks(track: Sequence[Tracker]) -> list[Any]:
    """Ray Tune's callbacks: a tracked run for each trial of a sweep."""
    refuse_absent(track)
    made: list[Any] = []
    if "mlflow" in track:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        made.append(MLflowLoggerCallback(experiment_name=EXPERIMENT))
    if "wandb" in track:
        from ray.air.integrations.wandb import WandbLoggerCallback

        made.append(WandbLoggerCallback(project=EXPERIMENT))
    return made


class Tracked:
    """Passes the parts of the loss every ``EVERY`` steps, and the measurements of every epoch, to ``log(values, step)``."""

    def __init__(self, log: Callable[[Mapping[str, float], int], Any], *, steps: int) -> None:
        self.log, self.steps = log, steps

    def on_step(self, attempt: int, epoch: int, step: int, parts: Mapping[str, Tensor]) -> None:
        """Parts of the loss, by step over the whole attempt."""
        if step % EVERY == 0:
            named = {f"train{attempt or ''}/{name}": float(value) for name, value in parts.items()}
            self.log(named, epoch * self.steps + step)

    def on_pause(self, net: nn.Module, state: Mapping[str, Any]) -> None:
        """Nothing to tell."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Measurements, at the step that ended the epoch."""
        named = {f"validation{epoch.attempt or ''}/{name}": value for name, value in epoch.measured.items()}
        self.log(named, (epoch.epoch + 1) * self.steps)


def flat(settings: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """{"method": "AnnotatorConfusion", "method.trace": 0.01, ...} of a run as JSON, as trackers take settings."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "is":
            found |= {within: value} if within else {}
        elif isinstance(value, dict):
            found |= flat(value, f"{within}.{name}" if within else name)
        else:
            found[f"{within}.{name}" if within else name] = str(value) if isinstance(value, list) else value
    return found


def _mlflow(settings: Mapping[str, Any], name: str) -> Callable[[Mapping[str, float], int], Any]:
    from ray.air.integrations.mlflow import setup_mlflow

    mlflow: Any = setup_mlflow(
        dict(settings), experiment_name=EXPERIMENT, run_name=name, create_experiment_if_not_exists=True
    )
    return lambda values, step: mlflow.log_metrics(dict(values), step=step)


def _wandb(settings: Mapping[str, Any], name: str) -> Callable[[Mapping[str, float], int], Any]:
    from ray.air.integrations.wandb import setup_wandb

    # the name is the id: a training that goes on after a failure goes on in the same run
    run: Any = setup_wandb(dict(settings), project=EXPERIMENT, trial_id=name, trial_name=name, group=EXPERIMENT)
    return lambda values, step: run.log(dict(values), step=step)


_LOGS = {"mlflow": _mlflow, "wandb": _wandb}
