"""The stream on a real, small Ray: the same batches as without Ray, whatever happened before."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from casebook import Cohort, Layer, describe_case, write_case
from rayters.patches.batches import local_batches
from rayters.patches.sampling import Sampling
from rayters.patches.view import Request, View
from rayters.training.stream import StreamConfig, open_stream, stream_batches

TARGET = View(size_px=(32, 32), field_of_view_px0=(32, 32))
WIDE = View(size_px=(32, 32), field_of_view_px0=(64, 64))
REQUEST = Request(views=(TARGET, WIDE), target=TARGET, annotators=("a", "b"))
SAMPLING = Sampling(patches_per_epoch=150, patches_per_block=8, mix_blocks=4, block_px=64)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("cohort")
    rows = []
    for number, shape in enumerate([(1, 300, 260), (1, 100, 140)]):
        image = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        layers = {Layer(id="a"): (image[0] > 127).astype(np.uint8), Layer(id="b"): (image[0] > 99).astype(np.uint8)}
        case = write_case(
            str(folder / f"case{number}.ome.zarr"), image, spacing_um=(1.0, 1.0), classes=("n", "t"), layers=layers
        )
        rows.append(describe_case(case, split="train", group=str(number)))
    return Cohort(
        url=str(folder), name="toy", classes=("n", "t"), annotators=("a", "b"), stable_annotators=True, reference=None,
        licence=None, cases=tuple(rows),
    )  # fmt: skip


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        np.array_equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left
    )


@pytest.mark.parametrize(("epoch", "first_batch"), [(0, 0), (5, 7), (1, 0)])
def test_ray_gives_the_batches_that_a_plain_loop_gives(
    ray_session: None, cohort: Cohort, epoch: int, first_batch: int
) -> None:
    ds = open_stream(cohort, REQUEST, SAMPLING, seed=3)
    ours = list(stream_batches(ds, batch_size=16, epoch=epoch, first_batch=first_batch))
    plain = list(local_batches(cohort, REQUEST, SAMPLING, batch_size=16, seed=3, epoch=epoch, first_batch=first_batch))
    assert len(ours) == len(plain) == 10 - first_batch
    assert all(same(a, b) for a, b in zip(ours, plain, strict=True))


def loop(config: dict[str, Any]) -> None:
    """Two epochs, noting every patch; in its first life rank 1 dies in epoch 1 after two batches."""
    from ray import train

    rank = train.get_context().get_world_rank()
    shard = train.get_dataset_shard("train")
    died = Path(config["notes"]) / "died"
    checkpoint = train.get_checkpoint()
    epoch, batch = 0, 0
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            epoch, batch = (int(n) for n in (Path(folder) / "place").read_text().split())
    for number in range(epoch, 2):
        for at, data in enumerate(stream_batches(shard, batch_size=16, epoch=number, first_batch=batch), start=batch):
            if rank == 1 and (number, at) == (1, 2) and not died.exists():
                died.touch()
                os.kill(os.getpid(), 9)
            save(train, Path(config["notes"]), rank, number, at, data)
        batch = 0


def save(train: Any, notes: Path, rank: int, epoch: int, batch: int, data: dict[str, Any]) -> None:
    """Trains a step, as it were: what a checkpoint has made lasting is noted under the place it was trained at."""
    folder = notes / f"step-{rank}-{epoch}-{batch}"
    folder.mkdir(exist_ok=True)
    np.save(
        folder / "patches.npy", data["patch"]
    )  # a step trained again after the kill overwrites its note, so must agree
    (folder / "place").write_text(f"{epoch} {batch + 1}")
    train.report(
        {"epoch": epoch, "batch": batch}, checkpoint=train.Checkpoint.from_directory(str(folder)) if rank == 0 else None
    )


def test_a_killed_worker_neither_repeats_nor_loses_a_patch(ray_session: None, cohort: Cohort, tmp_path: Path) -> None:
    ds = open_stream(cohort, REQUEST, SAMPLING, seed=3)
    notes = tmp_path / "notes"
    notes.mkdir()
    trainer = TorchTrainer(
        loop,
        train_loop_config={"notes": str(notes)},
        datasets={"train": ds},
        dataset_config=StreamConfig(),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(
            name="run", storage_path=str(tmp_path), failure_config=ray.train.FailureConfig(max_failures=2)
        ),
    )
    trainer.fit()
    assert (notes / "died").exists()
    for epoch in range(2):
        for rank in range(2):
            plain = local_batches(cohort, REQUEST, SAMPLING, batch_size=16, seed=3, epoch=epoch, rank=rank, world=2)
            for batch, data in enumerate(plain):
                assert np.array_equal(np.load(notes / f"step-{rank}-{epoch}-{batch}" / "patches.npy"), data["patch"])
        seen = np.concatenate([np.load(p) for p in notes.glob(f"step-*-{epoch}-*/patches.npy")])
        assert sorted(seen) == [(epoch << 40) + i for i in range(150)]
