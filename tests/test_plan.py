"""The plan, the share and the blocks: laws over random cohorts, and small cases by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casebook import CaseRow, Cohort
from rayters.patches.blocks import block_grid, block_size_px0
from rayters.patches.drawing import draw
from rayters.patches.plan import EpochPlan, plan_epoch, plan_grid
from rayters.patches.resume import Leg, Position, batches_left, rest_of
from rayters.patches.sampling import Sampling
from rayters.patches.share import Share
from rayters.patches.view import Request, View


def row(name: str, shape: tuple[int, ...], chunk: tuple[int, ...], **more: Any) -> CaseRow:
    fields: dict[str, Any] = {
        "case": name, "url": f"memory://nowhere/{name}", "split": "train", "group": name,
        "axes": ("z", "y", "x")[-len(shape):], "channels": 1, "dtype": "uint8", "shape": shape,
        "spacing_um": (1.0,) * len(shape), "chunk_px": chunk, "annotators": ("a", "b"), "mean": (0.0,), "std": (1.0,),
        "block_px": (64,) * len(shape), "foreground": (), "disagreement": (),
    }  # fmt: skip
    return CaseRow(**(fields | more))


def cohort(*rows: CaseRow) -> Cohort:
    return Cohort(
        url="memory://nowhere", name="toy", classes=("nothing", "thing"), annotators=("a", "b"), stable_annotators=True,
        reference=None, licence=None, cases=rows,
    )  # fmt: skip


def request_of(*size: int, field: tuple[int, ...] | None = None) -> Request:
    target = View(size_px=size, field_of_view_px0=field or size)
    return Request(views=(target,), target=target, annotators=("a", "b"))


SLIDES = cohort(row("big", (300, 500), (64, 64)), row("small", (40, 90), (40, 64)))
VOLUMES = cohort(row("ct", (40, 100, 120), (16, 32, 32)), row("thin", (5, 64, 64), (5, 32, 32)))


def identities(plan: EpochPlan, batch_size: int, world: int, first_batch: int = 0) -> list[list[int]]:
    """Per rank, the patches in the order in which its batches hold them."""
    out = []
    for rank in range(world):
        seen: list[int] = []
        for group in Share(plan=plan, rank=rank, world=world, batch_size=batch_size).groups(first_batch):
            patches = np.concatenate([task.patches for task in group.tasks])
            seen += patches[group.order].tolist()
        out.append(seen)
    return out


def coverage(plan: EpochPlan, case: int, field: tuple[int, ...]) -> np.ndarray:
    count = np.zeros(plan.cohort.cases[case].shape, dtype=int)
    for task in plan.tasks:
        if task.case == case:
            for origin in task.origins_px0:
                count[tuple(slice(max(0, o), o + f) for o, f in zip(origin, field, strict=True))] += 1
    return count


@pytest.mark.parametrize(("cases", "field"), [(SLIDES, (32, 48)), (SLIDES, (33, 47)), (VOLUMES, (8, 32, 24))])
def test_without_a_number_an_epoch_is_every_pixel_exactly_once(cases: Cohort, field: tuple[int, ...]) -> None:
    plan = plan_epoch(cases, request_of(*field), Sampling(block_px=64), seed=3, epoch=0)
    for index in range(len(cases.cases)):
        assert (coverage(plan, index, field) == 1).all()


def test_the_same_seed_and_epoch_give_the_same_plan_and_another_epoch_another() -> None:
    sampling = Sampling(patches_per_epoch=50, patches_per_block=4, block_px=64)
    one, again, next_one = (plan_epoch(SLIDES, request_of(32, 32), sampling, seed=3, epoch=e) for e in (1, 1, 2))
    assert np.array_equal(one.origins_px0, again.origins_px0)
    assert np.array_equal(one.patches, again.patches)
    assert not np.array_equal(one.origins_px0, next_one.origins_px0)
    assert not set(one.patches) & set(next_one.patches)


def test_jittered_patches_lie_inside_their_case_and_are_as_many_as_asked() -> None:
    sampling = Sampling(patches_per_epoch=203, patches_per_block=7, block_px=64)
    plan = plan_epoch(SLIDES, request_of(32, 48), sampling, seed=0, epoch=0)
    assert plan.num_patches == 203
    for task in plan.tasks:
        assert (task.origins_px0 >= 0).all()
        assert (np.add(task.origins_px0, (32, 48)) <= task.row.shape).all()


def test_the_patches_of_a_task_touch_the_chunks_of_one_block_only() -> None:
    sampling = Sampling(patches_per_epoch=400, patches_per_block=8, block_px=128)
    plan = plan_epoch(SLIDES, request_of(32, 48), sampling, seed=0, epoch=0)
    for task in plan.tasks:
        low, high = task.origins_px0.min(axis=0) // 64, np.add(task.origins_px0.max(axis=0), (31, 47)) // 64
        assert (
            high - low + 1 <= 3
        ).all()  # two chunks, or three where a sliver at the case's edge joined its neighbour


def test_over_many_epochs_jittered_patches_cover_a_case_evenly() -> None:
    one = cohort(row("c", (256, 256), (32, 32)))
    sampling = Sampling(patches_per_epoch=200, patches_per_block=2, block_px=64)
    count = np.zeros((256, 256))
    for epoch in range(80):
        count += coverage(plan_epoch(one, request_of(16, 16), sampling, seed=1, epoch=epoch), 0, (16, 16))
    inner = count[32:-32, 32:-32].reshape(12, 16, 12, 16).mean(axis=(1, 3))
    assert inner.std() / inner.mean() < 0.12  # 16,000 draws: 0.10 would be pure chance in 144 cells
    for seam in (64, 128, 192):  # a fixed seam would leave a furrow here
        assert count[seam - 2 : seam + 2, 32:-32].mean() / inner.mean() > 0.8


def test_a_case_smaller_than_a_patch_is_centred_in_it() -> None:
    tiny = cohort(row("tiny", (20, 30), (20, 30)))
    plan = plan_epoch(tiny, request_of(32, 32), Sampling(patches_per_epoch=3), seed=0, epoch=0)
    assert plan.origins_px0[:, 0].tolist() == [-6, -6, -6]
    assert plan.origins_px0[:, 1].tolist() == [-1, -1, -1]


def test_a_bigger_case_gets_its_share() -> None:
    sampling = Sampling(patches_per_epoch=1000, patches_per_block=2, block_px=64)
    plan = plan_epoch(SLIDES, request_of(32, 32), sampling, seed=0, epoch=0)
    big = sum(len(task) for task in plan.tasks if task.case == 0)
    assert big == pytest.approx(1000 * 150_000 / 153_600, abs=4)


def test_a_draw_is_off_by_less_than_one_and_in_random_order() -> None:
    drawn = draw(np.array([1.0, 0.0, 3.0]), 10, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=3)
    assert counts[1] == 0
    assert counts[0] in (2, 3)
    assert counts.sum() == 10


def test_blocks_are_whole_chunks_and_whole_targets_where_both_fit() -> None:
    big = row("s", (20_000, 20_000), (512, 512))
    grid = Sampling()
    assert block_size_px0(big, View(size_px=(256, 256), field_of_view_px0=(256, 256)), grid) == (2048, 2048)
    assert block_size_px0(big, View(size_px=(256, 256), field_of_view_px0=(1024, 1024)), grid) == (8192, 8192)
    assert block_size_px0(big, View(size_px=(200, 200), field_of_view_px0=(200, 200)), grid) == (2000, 2000)


def test_no_sliver_is_left_at_the_far_side() -> None:
    assert block_grid(row("s", (130, 250), (64, 64)), (64, 64), (0, 0), (32, 32)).seams_px0 == (
        (0, 64, 130),
        (0, 64, 128, 192, 250),
    )
    assert block_grid(row("s", (130, 250), (64, 64)), (128, 128), (64, 64), (32, 32)).seams_px0 == (
        (0, 64, 130),
        (0, 64, 192, 250),
    )


@settings(max_examples=60, deadline=None)
@given(
    world=st.integers(1, 5), batch_size=st.integers(1, 9), patches=st.integers(5, 90), per_block=st.integers(1, 7),
    mix=st.integers(1, 5), seed=st.integers(0, 5),
)  # fmt: skip
def test_shares_are_the_whole_epoch_once_and_equally_many_batches(
    world: int, batch_size: int, patches: int, per_block: int, mix: int, seed: int
) -> None:
    sampling = Sampling(patches_per_epoch=patches, patches_per_block=per_block, mix_blocks=mix, block_px=64)
    plan = plan_epoch(SLIDES, request_of(32, 32), sampling, seed=seed, epoch=0)
    shares = identities(plan, batch_size, world)
    assert sorted(np.concatenate(shares)) == plan.patches.tolist()
    for rank, share in enumerate(shares):
        cut = Share(plan=plan, rank=rank, world=world, batch_size=batch_size)
        bounds = [cut.batch_start(b) for b in range(cut.num_batches + 1)]
        assert bounds[0] == 0
        assert bounds[-1] == len(share)
        sizes = np.diff(bounds)
        assert (sizes >= 1).all()
        assert (sizes <= max(batch_size, 2)).all()


@settings(max_examples=60, deadline=None)
@given(world=st.integers(1, 3), batch_size=st.integers(1, 9), first_batch=st.integers(0, 30), mix=st.integers(1, 5))
def test_resuming_at_a_batch_gives_the_rest_of_the_epoch_and_reads_nothing_else(
    world: int, batch_size: int, first_batch: int, mix: int
) -> None:
    sampling = Sampling(patches_per_epoch=60, patches_per_block=5, mix_blocks=mix, block_px=64)
    plan = plan_epoch(SLIDES, request_of(32, 32), sampling, seed=1, epoch=4)
    whole, rest = identities(plan, batch_size, world), identities(plan, batch_size, world, first_batch)
    for rank in range(world):
        start = Share(plan=plan, rank=rank, world=world, batch_size=batch_size).batch_start(first_batch)
        assert rest[rank] == whole[rank][start:]


def test_a_batch_holds_patches_of_several_blocks() -> None:
    sampling = Sampling(patches_per_epoch=640, patches_per_block=16, mix_blocks=8, block_px=64)
    plan = plan_epoch(SLIDES, request_of(32, 32), sampling, seed=1, epoch=0)
    order = np.asarray(identities(plan, 32, 1)[0])
    block = np.searchsorted(plan.first, order, side="right") - 1
    distinct = [len(set(block[i : i + 32])) for i in range(0, 640, 32)]
    assert min(distinct) >= 6


def test_what_cannot_be_planned_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="no case"):
        plan_epoch(cohort(), request_of(32, 32), Sampling(), seed=0, epoch=0)
    with pytest.raises(ValueError, match="axes"):
        plan_epoch(VOLUMES, request_of(32, 32), Sampling(), seed=0, epoch=0)
    with pytest.raises(ValueError, match="mix_blocks is 0"):
        Sampling(mix_blocks=0)
    plan = plan_epoch(SLIDES, request_of(32, 32), Sampling(patches_per_epoch=2), seed=0, epoch=0)
    with pytest.raises(ValueError, match="2 patches for 3 workers"):
        Share(plan=plan, rank=0, world=3, batch_size=1)


def test_a_grid_with_overlap_covers_every_pixel_in_order_and_none_needlessly_often() -> None:
    plan = plan_grid(SLIDES, request_of(32, 48), Sampling(block_px=64), overlap_px0=(8, 16))
    for index in range(2):
        count = coverage(plan, index, (32, 48))
        assert count.min() == 1
        assert count.max() <= 4
    assert identities(plan, 4, 1)[0] == plan.patches.tolist()
    assert (np.diff(plan.case) >= 0).all()
    with pytest.raises(ValueError, match="overlap less"):
        plan_grid(SLIDES, request_of(32, 48), Sampling(), overlap_px0=(32, 0))


# 4 x 2 cells of 64 px; class 1 lies in one cell, and the annotators differ in another one only
LOPSIDED = row(
    "lopsided", (256, 128), (32, 32),
    foreground=((4096,) * 7 + (4000,), (0,) * 7 + (96,)), disagreement=(0, 0, 7, 0, 0, 0, 0, 0),
)  # fmt: skip


def middles(balance: str, patches: int = 2000) -> np.ndarray:
    sampling = Sampling(patches_per_epoch=patches, patches_per_block=2, block_px=64, balance=balance)
    plan = plan_epoch(cohort(LOPSIDED), request_of(16, 16), sampling, seed=0, epoch=0)
    assert (plan.origins_px0 >= 0).all()
    assert (plan.origins_px0 + 16 <= (256, 128)).all()
    return (plan.origins_px0 + 8) // 64 @ np.array([2, 1])  # the cell that the middle of each patch lies in


def test_class_balance_gives_a_rare_class_as_many_patches_as_a_common_one() -> None:
    assert (middles("class") == 7).mean() == pytest.approx(0.5 + 0.5 * 4000 / 32672, abs=0.03)


def test_disagreement_draws_three_quarters_from_disputed_places_and_the_rest_anywhere() -> None:
    cell = middles("disagreement")
    assert (cell == 2).mean() == pytest.approx(0.75 + 0.25 / 8, abs=0.03)
    assert len(set(cell)) == 8


def test_balance_without_counts_is_refused() -> None:
    with pytest.raises(ValueError, match="write the cohort anew"):
        plan_epoch(SLIDES, request_of(32, 32), Sampling(patches_per_epoch=4, balance="class"), seed=0, epoch=0)
    with pytest.raises(ValueError, match="patches_per_epoch"):
        Sampling(balance="class")


@settings(max_examples=40, deadline=None)
@given(
    legs=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 4)), max_size=3),
    world=st.integers(1, 3), mix=st.integers(1, 4),
)  # fmt: skip
def test_after_any_change_of_the_number_of_workers_each_patch_has_been_seen_once(
    legs: list[tuple[int, int, int]], world: int, mix: int
) -> None:
    sampling = Sampling(patches_per_epoch=97, patches_per_block=5, mix_blocks=mix, block_px=64)
    plan = plan_epoch(SLIDES, request_of(32, 32), sampling, seed=1, epoch=4)
    seen: list[int] = []
    done: list[Leg] = []
    for workers, batch_size, batches in legs:
        rest = rest_of(plan, done)
        if rest.num_patches < workers:
            with pytest.raises(ValueError, match=f"{97 - len(seen)} patches for {workers} workers"):
                batches_left(plan, Position(done=tuple(done)), world=workers, batch_size=batch_size)
            return
        for rank, order in enumerate(identities(rest, batch_size, workers)):
            seen += order[: Share(plan=rest, rank=rank, world=workers, batch_size=batch_size).batch_start(batches)]
        done.append(Leg(world=workers, batch_size=batch_size, batches=batches))
        here = Position(done=tuple(done[:-1]), first_batch=batches)
        left = batches_left(plan, here, world=workers, batch_size=batch_size)
        assert left * workers <= 97 - len(seen)  # so that where a pause is allowed there is a patch for everybody
        if len(seen) == 97:
            with pytest.raises(ValueError, match="complete"):
                rest_of(plan, done)
            return
    if 97 - len(seen) >= world:
        for order in identities(rest_of(plan, done), 4, world):
            seen += order
        assert sorted(seen) == plan.patches.tolist()
