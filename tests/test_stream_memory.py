"""The memory budget as arithmetic: every term by hand, and the refusal before the start."""

from dataclasses import replace

import pytest

from casebook import CaseRow, Cohort
from rayters.patches.memory import box_bytes, refuse_if_over, stream_memory
from rayters.patches.sampling import Sampling
from rayters.patches.view import Request, View

SLIDE = CaseRow(
    case="s", url="memory://s", split="train", group="g", axes=("y", "x"), channels=3, dtype="uint8",
    shape=(100_000, 100_000), spacing_um=(0.5, 0.5), chunk_px=(512, 512), annotators=("a", "b"),
    mean=(0.0,) * 3, std=(1.0,) * 3, block_px=(1024, 1024), foreground=(), disagreement=(),
)  # fmt: skip
COHORT = Cohort(
    url="memory://", name="c", classes=("n", "t"), annotators=("a", "b"), stable_annotators=True, reference=None,
    licence=None, cases=(SLIDE,),
)  # fmt: skip


def view(field: int) -> View:
    return View(size_px=(256, 256), field_of_view_px0=(field, field))


def test_every_term_is_a_product_of_shapes() -> None:
    request = Request(views=(view(256), view(512)), target=view(256), annotators=("a", "b"))
    sampling = Sampling(patches_per_epoch=1000, patches_per_block=16, mix_blocks=8)
    memory = stream_memory(COHORT, request, sampling, batch_size=32, reads=2, threads=2)
    patch = 2 * 3 * 256 * 256 + 2 * 256 * 256 + 32  # views + labels + four int64
    box = (
        3 * 2304**2 + 3 * 1280**2 + 2 * 2304**2
    )  # block 2048 and a target; half of it, and the wide view's margin; labels
    assert memory.patch == patch
    assert memory.boxes == box
    assert memory.block == 16 * patch
    assert memory.read_task == box + 16 * patch
    assert memory.store == (8 + 2 + 4) * 16 * patch
    assert memory.worker_reading == (8 + 4 + 1) * box + 3 * 32 * patch


def test_a_slide_ten_times_as_large_costs_not_a_byte_more() -> None:
    request = Request(views=(view(256),), target=view(256), annotators=("a",))
    larger = replace(COHORT, cases=(replace(SLIDE, shape=(1_000_000, 100_000)),))
    for sampling in (Sampling(), Sampling(patches_per_epoch=10)):
        one, ten = (stream_memory(c, request, sampling, batch_size=8) for c in (COHORT, larger))
        assert one == ten


def test_a_small_case_costs_no_more_than_itself() -> None:
    request = Request(views=(view(256),), target=view(256), annotators=())
    assert box_bytes(replace(SLIDE, shape=(300, 200)), request, Sampling()) == 3 * 300 * 200


def test_over_budget_is_refused_with_both_numbers_and_the_knobs() -> None:
    with pytest.raises(ValueError, match=r"2,048 MiB of memory, there are 1,024 MiB: lower mix_blocks \(8\)"):
        refuse_if_over(2**31, 2**30, "memory", Sampling())
    refuse_if_over(2**30, 2**30, "memory", Sampling())
