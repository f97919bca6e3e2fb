"""A trained model on disk: weights as safetensors, everything else as JSON; nothing that is unpickled.

run.json             the run, the task, the cohort's classes and annotators, what the training measured
weights.safetensors  the net
state.pt             only in checkpoints: what a resumed training needs (tensors and numbers, loaded with weights_only)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import nn

from rayters.networks.allocator import keep_freed_memory
from rayters.networks.task import Task
from rayters.training.run import Run, from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Model:
    """A net with all that is needed to use it."""

    run: Run
    task: Task
    classes: tuple[str, ...]
    annotators: tuple[str, ...]
    measured: Mapping[str, float]
    net: nn.Module


def build_net(run: Run, task: Task) -> nn.Module:
    """The net of a run, freshly initialised from torch's global generator."""
    keep_freed_memory()  # whoever builds a net is about to use it
    return run.method.build(task, lambda: run.gaze.build(task, run.network))


def save_model(folder: Path, model: Model) -> None:
    """Writes the two files of a model into an existing folder."""
    save_weights(model.net, str(folder / "weights.safetensors"))
    about = {name: to_json(getattr(model, name)) for name in ("run", "task", "classes", "annotators")}
    (folder / "run.json").write_text(json.dumps(about | {"measured": dict(model.measured)}, indent=1))


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> Model:
    """Reads a model back, ready to predict.

    Raises:
        FileNotFoundError: when the folder holds no model.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no run.json: give the folder of a checkpoint, as printed at the end of jobs/train.py"
        )
    about: dict[str, Any] = json.loads((folder / "run.json").read_text())
    run, task = from_json(about["run"]), from_json(about["task"])
    net = build_net(run, task)
    load_weights(net, str(folder / "weights.safetensors"))
    return Model(
        run=run,
        task=task,
        classes=tuple(about["classes"]),
        annotators=tuple(about["annotators"]),
        measured=about["measured"],
        net=net.to(device).eval(),
    )


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes what a resumed training needs beside the model."""
    torch.save(dict(state), folder / "state.pt")


def load_state(folder: Path) -> dict[str, Any]:
    """Reads it back; only tensors, numbers and containers of them are accepted."""
    state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    return state
