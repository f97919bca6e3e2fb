"""The rows of bench_stream.py on mixing: of how many blocks and cases the patches of a batch come. Plans alone; nothing is read."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

import bench_stream_sides as sides
from casebook import Cohort
from rayters.patches.plan import plan_epoch
from rayters.patches.share import Share
from rayters.reports.rows import Row

CASES = 16


def shuffle_rows(slide: Cohort) -> list[Row]:
    """Blocks of the slide, and cases of a cohort of sixteen of its size: the mean over batches, and the least mixed batches."""
    first = slide.cases[0]
    many = replace(slide, cases=tuple(replace(first, case=f"slide {n}") for n in range(CASES)))
    blocks, cases = _places(slide)[0], _places(many)[1]
    return [
        *_rows("blocks", "of the slide", *blocks),
        *_rows("cases", f"of a cohort of {CASES}", *cases),
    ]


Places = tuple[NDArray[np.int64], NDArray[np.int64]]


def _places(cohort: Cohort) -> tuple[Places, Places]:
    """(blocks, cases) of each patch: in the order in which a worker sees them, and in an order drawn by itself."""
    plan = plan_epoch(cohort, sides.request(256), sides.jittered(cohort, 256, 64), seed=0, epoch=0)
    share = Share(plan=plan, rank=0, world=1, batch_size=sides.BATCH)
    order = np.concatenate([np.concatenate([t.patches for t in group.tasks])[group.order] for group in share.groups()])
    block = np.searchsorted(plan.first, order, side="right") - 1
    drawn = np.random.default_rng(0).permutation(block)
    return (block, drawn), (plan.case[block], plan.case[drawn])


def _rows(what: str, of: str, seen: NDArray[np.int64], drawn: NDArray[np.int64]) -> list[Row]:
    ours, alone = _distinct(seen), _distinct(drawn)
    named = f"distinct {what} {of} in a batch of {sides.BATCH}"
    return [
        Row(row=f"{named} / if every patch were drawn by itself", value=ours.mean(), reference=alone.mean(), unit=what),
        Row(
            row=f"  {named}, in the least mixed 5 % of batches / if drawn by itself",
            value=float(np.quantile(ours, 0.05)),
            reference=float(np.quantile(alone, 0.05)),
            unit=what,
        ),
    ]


def _distinct(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many different ones each batch has."""
    whole = len(places) // sides.BATCH * sides.BATCH
    batches = np.sort(places[:whole].reshape(-1, sides.BATCH), axis=1)
    return 1 + (np.diff(batches, axis=1) != 0).sum(axis=1)
