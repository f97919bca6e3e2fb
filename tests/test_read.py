"""Reading a block against plain numpy: what a patch must hold, computed the long way round."""

from pathlib import Path

import numpy as np
import pytest

from casebook import IGNORE, Cohort, Layer, describe_case, write_case
from rayters.patches.batches import local_batches
from rayters.patches.plan import plan_epoch
from rayters.patches.read import read_block
from rayters.patches.sampling import Sampling
from rayters.patches.view import Request, View


def cohort_of(tmp_path: Path, *images: np.ndarray, axes: int = 2, layers: tuple[str, ...] = ("a", "b")) -> Cohort:
    rows = []
    for number, image in enumerate(images):
        labels = {Layer(id=name): (image[0] // 64 + i).astype(np.uint8) for i, name in enumerate(layers)}
        case = write_case(
            str(tmp_path / f"case{number}.ome.zarr"),
            image,
            spacing_um=(1.0,) * axes,
            classes=tuple("vwxyz"),
            layers=labels,
        )
        rows.append(describe_case(case, split="train", group=str(number)))
    return Cohort(
        url=str(tmp_path), name="toy", classes=tuple("vwxyz"), annotators=layers, stable_annotators=True, reference=None,
        licence=None, cases=tuple(rows),
    )  # fmt: skip


def picture(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def square(size: int, field: int, axes: int = 2) -> View:
    return View(size_px=(size,) * axes, field_of_view_px0=(field,) * axes)


@pytest.mark.parametrize("shape", [(3, 150, 130), (1, 40, 70, 50)])
def test_every_pixel_once_puts_the_case_together_again(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = picture(*shape)
    axes = len(shape) - 1
    cohort = cohort_of(tmp_path, image, axes=axes)
    target = square(32, 32, axes)
    request = Request(views=(target,), target=target, annotators=("a", "b"))
    again, labels = np.zeros_like(image), np.full((2, *shape[1:]), 99, np.uint8)
    for batch in local_batches(cohort, request, Sampling(block_px=64), batch_size=5, seed=0, epoch=0):
        for view, drawn, origin in zip(batch["views"], batch["labels"], batch["origin_px0"], strict=True):
            box = tuple(slice(int(o), min(int(o) + 32, n)) for o, n in zip(origin, shape[1:], strict=True))
            part = tuple(slice(0, s.stop - s.start) for s in box)
            again[(slice(None), *box)] = view[0][(slice(None), *part)]
            labels[(slice(None), *box)] = drawn[(slice(None), *part)]
            outside = np.ones((32,) * axes, bool)
            outside[part] = False
            assert (drawn[:, outside] == IGNORE).all()
    assert np.array_equal(again, image)
    assert np.array_equal(labels, np.stack([image[0] // 64, image[0] // 64 + 1]))


def test_wide_views_are_means_of_what_they_cover_and_share_the_centre(tmp_path: Path) -> None:
    image = picture(3, 256, 256)
    cohort = cohort_of(tmp_path, image)
    views = (square(32, 32), square(32, 64), square(32, 48))
    request = Request(views=views, target=views[0], annotators=("a",))
    plan = plan_epoch(cohort, request, Sampling(patches_per_epoch=40), seed=0, epoch=0)
    block = read_block(plan.tasks[0], request, "ignore")
    for patch, (y, x) in zip(block["views"], block["origin_px0"], strict=True):
        if not (16 <= y <= 256 - 48 and 16 <= x <= 256 - 48):
            continue
        assert np.array_equal(patch[0], image[:, y : y + 32, x : x + 32])
        wide = image[:, y - 8 : y + 40, x - 8 : x + 40].astype(float)  # 48 px onto 32: exact area mean, from level 0
        rows = np.zeros((32, 48))
        for i in range(32):
            for j in range(48):
                rows[i, j] = max(0.0, min(1.5 * (i + 1), j + 1) - max(1.5 * i, j)) / 1.5
        expected = np.einsum("iy,jx,cyx->cij", rows, rows, wide)
        assert np.abs(patch[2] - expected).max() <= 0.51
        if y % 2 == 0 and x % 2 == 0:  # the level-1 pixel grid
            mean = image[:, y - 16 : y + 48, x - 16 : x + 48].reshape(3, 32, 2, 32, 2).mean(axis=(2, 4))
            assert np.abs(patch[1] - mean).max() <= 1


@pytest.mark.parametrize(("border", "corner"), [("ignore", IGNORE), ("reflect", None)])
def test_beyond_the_case_the_image_is_mirrored_and_labels_are_as_chosen(
    tmp_path: Path, border: str, corner: int | None
) -> None:
    image = picture(1, 20, 24)
    cohort = cohort_of(tmp_path, image)
    target = square(32, 32)
    request = Request(views=(target,), target=target, annotators=("a", "b"))
    plan = plan_epoch(cohort, request, Sampling(patches_per_epoch=1), seed=0, epoch=0)
    block = read_block(plan.tasks[0], request, border)
    padded = np.pad(image, ((0, 0), (6, 6), (4, 4)), mode="reflect")
    assert np.array_equal(block["views"][0, 0], padded)
    assert (block["labels"][0, 0, 6:26, 4:28] == image[0] // 64).all()
    if corner is None:
        assert np.array_equal(block["labels"][0, 0], padded[0] // 64)
    else:
        assert block["labels"][0, 0, 0, 0] == corner


def test_an_annotator_who_never_saw_the_case_says_ignore_and_the_others_keep_their_planes(tmp_path: Path) -> None:
    image = picture(1, 64, 64)
    cohort = cohort_of(tmp_path, image)
    target = square(32, 32)
    request = Request(views=(target,), target=target, annotators=("b", "nobody", "a"))
    batch = next(local_batches(cohort, request, Sampling(patches_per_epoch=4), batch_size=4, seed=0, epoch=0))
    for labels, view in zip(batch["labels"], batch["views"], strict=True):
        assert np.array_equal(labels[0], view[0, 0] // 64 + 1)
        assert (labels[1] == IGNORE).all()
        assert np.array_equal(labels[2], view[0, 0] // 64)


def test_the_stored_dtype_goes_out(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(-1000, 3000, (1, 20, 40, 40)).astype(np.int16)
    case = write_case(
        str(tmp_path / "ct.ome.zarr"), image, spacing_um=(5.0, 1.0, 1.0), classes=("n", "t"),
        layers={Layer(id="a"): (image[0] > 0).astype(np.uint8)},
    )  # fmt: skip
    cohort = Cohort(
        url=str(tmp_path), name="ct", classes=("n", "t"), annotators=("a",), stable_annotators=True, reference=None,
        licence=None, cases=(describe_case(case, split="train", group="p"),),
    )  # fmt: skip
    target = View(size_px=(8, 16, 16), field_of_view_px0=(8, 16, 16))
    request = Request(views=(target,), target=target, annotators=("a",))
    batch = next(local_batches(cohort, request, Sampling(patches_per_epoch=6), batch_size=6, seed=0, epoch=0))
    assert batch["views"].dtype == np.int16
    for view, labels, (z, y, x) in zip(batch["views"], batch["labels"], batch["origin_px0"], strict=True):
        assert np.array_equal(view[0], image[:, z : z + 8, y : y + 16, x : x + 16])
        assert np.array_equal(labels[0], view[0, 0] > 0)


def test_two_workers_see_every_patch_once_between_them(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path, picture(1, 200, 200), picture(1, 90, 150, seed=1))
    target = square(32, 32)
    request = Request(views=(target,), target=target, annotators=("a", "b"))
    alone = [b["patch"] for b in local_batches(cohort, request, Sampling(block_px=64), batch_size=4, seed=0, epoch=2)]
    both = [
        batch["patch"]
        for rank in (0, 1)
        for batch in local_batches(
            cohort, request, Sampling(block_px=64), batch_size=4, seed=0, epoch=2, rank=rank, world=2
        )
    ]
    assert sorted(np.concatenate(alone)) == sorted(np.concatenate(both))
