"""Annotator confusion among several classes, trained on pictures of three shapes that five annotators draw, each in one style."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayters.annotators.fuse import majority_vote
from rayters.annotators.simulate import draw_all, five
from rayters.methods import AnnotatorConfusion
from rayters.methods.method import Prediction
from rayters.networks.confusion import Level
from rayters.networks.task import Task

CLASSES, SIDE, STEPS = 4, 32, 120
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


def cohort(seed: int, count: int = 48) -> tuple[Tensor, Tensor, np.ndarray]:
    """Noisy views (N, 1, 3, Y, X), labels (N, 5, Y, X) and truth (N, Y, X): a disc of each class, one per channel, apart."""
    rng = np.random.default_rng(seed)
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


@cache
def trained(level: Level) -> Prediction:
    """Of the cohort of seed 1, by a net that has learnt from that of seed 0."""
    torch.manual_seed(0)
    method, (views, labels, _) = AnnotatorConfusion(level=level), cohort(seed=0)
    net = method.build(TASK, Eye).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(STEPS):
        batch = torch.arange(16) + 16 * (step % 3)
        loss = method.loss(net(views[batch], labels[batch]), labels[batch], step / STEPS).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return method.predict(net.eval()(cohort(seed=1)[0]))


@pytest.mark.parametrize("level", ["pixel", "global"])
def test_of_every_class_more_is_found_than_by_the_vote(level):
    _, labels, truth = cohort(seed=1)
    vote = majority_vote(np.swapaxes(labels.numpy().astype(np.uint8), 0, 1), classes=CLASSES)
    found = dice(trained(level).posterior.argmax(1).numpy(), truth)
    assert max(dice(vote, truth)) < 0.75
    assert min(found) > 0.92


def test_a_swap_of_classes_is_the_annotators_and_not_the_networks():
    # one confusion for the whole cohort needs more steps than this to leave its start
    confusion, truth = trained("pixel").confusion, torch.from_numpy(cohort(seed=1)[2])
    most = [
        [confusion[:, a, :, j].movedim(1, -1)[truth == j].mean(0).argmax().item() for j in range(CLASSES)]
        for a in range(TASK.annotators)
    ]
    assert most[0] == [0, 1, 2, 3]  # good: what is written where class j is true, most of the time
    assert most[3] == [0, 2, 3, 1]  # the one who swaps them in a circle
    assert most[4] == [0, 0, 0, 0]  # blank
