"""What happens to a patch on the device: motions that keep image, views and labels together, decided by identity."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from casebook import IGNORE
from rayters.training.augment import augment
from rayters.training.augmentation import Augmentation
from rayters.training.device import on_device
from rayters.training.stain import jitter_stain

STILL = Augmentation()
MOVING = Augmentation(flips=True, rotation_deg=180, scale=0.2)


def apply(
    views: torch.Tensor,
    labels: torch.Tensor,
    how: Augmentation,
    *,
    ids: list[int],
    seed: int = 0,
    scales: tuple[float, ...] = (1.0,),
):
    channels = views.shape[2]
    return augment(
        views, labels, torch.tensor(ids), augmentation=how, seed=seed, scales=scales,
        mean=torch.zeros(channels), std=torch.ones(channels),
    )  # fmt: skip


def blobs(batch: int, *size: int) -> torch.Tensor:
    """Smooth pictures, (B, *size) in 0..200."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij")
    out = [100 + 100 * torch.sin(3 * axes[-1] + b) * torch.cos(4 * axes[-2] - b) for b in range(batch)]
    return torch.stack(out)


@pytest.mark.parametrize("size", [(24, 24), (6, 24, 20)])
def test_at_strength_zero_nothing_moves(size: tuple[int, ...]) -> None:
    views = blobs(3, *size)[:, None, None].to(torch.uint8)
    labels = (views[:, 0] > 100).to(torch.uint8)
    moved, drawn = apply(views, labels, STILL, ids=[1, 2, 3])
    assert torch.allclose(moved, views.float(), atol=1e-3)
    assert torch.equal(drawn, labels)


@pytest.mark.parametrize("size", [(48, 48), (40, 56), (8, 48, 48)])
@pytest.mark.parametrize("elastic", [0.0, 0.03])
def test_image_and_all_annotators_move_together(size: tuple[int, ...], elastic: float) -> None:
    picture = blobs(6, *size)
    views = picture[:, None, None].to(torch.uint8)
    labels = torch.stack([picture > 100, picture > 120], dim=1).to(torch.uint8)
    how = replace(MOVING, elastic=elastic)
    moved, drawn = apply(views, labels, how, ids=list(range(6)))
    assert not torch.equal(drawn, labels)
    seen = drawn[:, 0] != IGNORE
    for annotator, threshold in enumerate((100, 120)):
        agree = (moved[:, 0, 0] > threshold) == (drawn[:, annotator] == 1)
        assert agree[seen].float().mean() > 0.97
    assert torch.equal(seen, drawn[:, 1] != IGNORE)


def test_a_wide_view_sees_the_same_motion_at_half_the_scale() -> None:
    whole = blobs(4, 128, 128)[:, None]
    target, wide = whole[:, :, 32:96, 32:96], torch.nn.functional.avg_pool2d(whole, 2)
    views = torch.stack([target, wide], dim=1)
    labels = torch.zeros(4, 1, 64, 64, dtype=torch.uint8)
    how = replace(MOVING, scale=0.1, elastic=0.03)
    moved, _ = apply(views, labels, how, ids=[5, 6, 7, 8], scales=(1.0, 2.0))
    small = torch.nn.functional.avg_pool2d(moved[:, 0], 2)
    assert (small - moved[:, 1, :, 16:48, 16:48])[:, :, 6:-6, 6:-6].abs().mean() < 2.5
    assert (small - views[:, 1, :, 16:48, 16:48]).abs().mean() > 10


def test_a_patch_fares_the_same_in_any_batch_and_otherwise_with_another_seed() -> None:
    views = blobs(4, 32, 32)[:, None, None].to(torch.uint8)
    labels = (views[:, 0] > 100).to(torch.uint8)
    how = replace(MOVING, elastic=0.05, gain=0.1, shift=0.1)
    together, drawn = apply(views, labels, how, ids=[7, 1 << 41, 9, 3])
    alone, alone_drawn = apply(views[1:2], labels[1:2], how, ids=[1 << 41])
    assert torch.allclose(together[1:2], alone, atol=1e-4)
    assert torch.equal(drawn[1:2], alone_drawn)
    assert not torch.allclose(alone, apply(views[1:2], labels[1:2], how, ids=[1 << 41], seed=1)[0], atol=1)


def test_what_comes_from_outside_is_ignored_and_ignored_stays_ignored() -> None:
    views = torch.full((1, 1, 1, 32, 32), 9, dtype=torch.uint8)
    labels = torch.zeros(1, 2, 32, 32, dtype=torch.uint8)
    labels[0, 1] = IGNORE
    _, drawn = apply(views, labels, Augmentation(rotation_deg=180), ids=[4])
    assert set(drawn[0, 0].unique().tolist()) == {0, IGNORE}
    assert (drawn[0, 1] == IGNORE).all()


def test_stain_jitter_of_nothing_changes_nothing_and_glass_stays_white() -> None:
    slide = torch.tensor([[90, 60, 130], [200, 120, 170], [255, 255, 255]]).T.reshape(1, 1, 3, 1, 3).float()
    assert torch.allclose(jitter_stain(slide, torch.zeros(1, 2, 3)), slide, atol=0.5)
    more = torch.tensor([[[0.3, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    dyed = jitter_stain(slide, more)
    assert (dyed[..., 0] < slide[..., 0] - 5).any()
    assert torch.allclose(dyed[..., 2], slide[..., 2], atol=1)
    with pytest.raises(ValueError, match="RGB"):
        jitter_stain(slide[:, :, :1], more)


def test_on_a_processor_batches_arrive_in_order_and_uncopied() -> None:
    batch = {
        "views": np.zeros((2, 1, 1, 4, 4), np.uint8), "labels": np.zeros((2, 1, 4, 4), np.uint8),
        "patch": np.array([5, 6]), "case": np.array([0, 0]), "origin_px0": np.zeros((2, 2), np.int64),
    }  # fmt: skip
    (arrived,) = on_device([batch], torch.device("cpu"))
    batch["views"][0, 0, 0, 0, 0] = 7
    assert arrived["views"][0, 0, 0, 0, 0] == 7
    assert arrived["patch"].tolist() == [5, 6]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: the copies that overlap cannot be seen")
def test_on_a_gpu_every_batch_arrives_whole() -> None:
    rng = np.random.default_rng(0)
    sent = [
        {
            "views": rng.integers(0, 255, (8, 1, 3, 64, 64), dtype=np.uint8), "labels": rng.integers(0, 3, (8, 2, 64, 64), dtype=np.uint8),
            "patch": np.arange(8) + 8 * i, "case": np.zeros(8, np.int64), "origin_px0": np.zeros((8, 2), np.int64),
        }
        for i in range(20)
    ]  # fmt: skip
    arrived = [batch["views"].clone() for batch in on_device(sent, torch.device("cuda"))]
    assert all(np.array_equal(a.cpu().numpy(), b["views"]) for a, b in zip(arrived, sent, strict=True))
