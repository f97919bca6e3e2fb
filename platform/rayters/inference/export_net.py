"""A net without Rayters: torch.export's program, which torch.export.load, AOTInductor and ExecuTorch run without this code.

program = torch.export.load("net.pt2").module()
posterior = program(views)          views (B, V, C, *S) float32 as stored, not normalised; posterior (B, K, *S)
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from rayters.training.model import Model


class Whole(nn.Module):
    """Normalisation, net and the method's own posterior in one module."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net, self.method = model.net, model.run.method
        per_channel = (1, 1, -1, *(1,) * model.task.axes)
        self.register_buffer("mean", torch.tensor(model.task.mean).view(per_channel))
        self.register_buffer("std", torch.tensor(model.task.std).view(per_channel))

    def forward(self, views: Tensor) -> Tensor:
        """views: (B, V, C, *S) in stored units."""
        return self.method.predict(self.net((views - self.mean) / self.std)).posterior


def export_net(model: Model, path: str | Path) -> None:
    """Writes ``path`` (.pt2): any batch size, tiles of the size that the model was trained on."""
    task = model.task
    example = torch.zeros(2, len(task.view_scales), task.channels, *task.patch_px)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with torch.no_grad():
        program = torch.export.export(Whole(model).eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
