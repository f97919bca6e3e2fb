"""Annotator confusion among several classes, trained on pictures of three shapes that five annotators draw, each in one style."""

import numpy as np
import torch
from torch import Tensor, nn

from rayters.annotators.simulate import draw_all, five
from rayters.methods import AnnotatorConfusion
from rayters.networks.task import Task

CLASSES, SIDE = 4, 32
TASK = Task(channels=3, classes=CLASSES, annotators=5, patch_px=(SIDE, SIDE))


class Eye(nn.Module):
    """Two convolutions: features, and logits from them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2), nn.LeakyReLU(0.01), nn.Conv2d(16, 16, 5, padding=2), nn.LeakyReLU(0.01)
        )
        self.logits = nn.Conv2d(16, CLASSES, 1)

    def forward(self, views: Tensor) -> dict[str, Tensor]:
        features = self.features(views[:, 0])
        return {"logits": self.logits(features), "features": features}


def cohort(count: int = 48) -> tuple[Tensor, Tensor, np.ndarray]:
    """Noisy views (N, 1, 3, Y, X), labels (N, 5, Y, X) and truth (N, Y, X): a disc of each class, one per channel, apart."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    truth = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    for picture in truth:
        corners = rng.permutation(4)[:3]
        for value, corner in enumerate(corners, start=1):
            cy, cx = 8 + 16 * (corner // 2) + rng.uniform(-2, 2), 8 + 16 * (corner % 2) + rng.uniform(-2, 2)
            picture[(y - cy) ** 2 + (x - cx) ** 2 < rng.uniform(3, 4.5) ** 2] = value
    clean = np.stack([truth == value for value in range(1, CLASSES)], axis=1).astype(np.float32)
    views = clean + rng.normal(0, 0.3, clean.shape).astype(np.float32)
    labels = np.swapaxes(draw_all(truth, five(CLASSES)), 0, 1).astype(np.int64)
    return torch.from_numpy(views)[:, None], torch.from_numpy(labels), truth


def dice(found: np.ndarray, truth: np.ndarray) -> list[float]:
    """Of each foreground class, over all pictures."""
    return [
        float(2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()))
        for k in range(1, CLASSES)
    ]


def trained(method: AnnotatorConfusion, views: Tensor, labels: Tensor, steps: int) -> nn.Module:
    torch.manual_seed(0)
    net = method.build(TASK, Eye).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(steps):
        batch = torch.arange(16) + 16 * (step % 3)
        loss = method.loss(net(views[batch], labels[batch]), labels[batch], step / steps).total
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval()
