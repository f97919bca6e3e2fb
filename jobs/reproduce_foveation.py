"""Jin et al. 2020 on generated slides where the best field of view provably varies: jobs/reproduce.py foveation.

A slide shows bright discs in one half, left or right by chance, and dark discs in the other. A bright disc is tumour where its *fine*
texture is striped upright and benign where it lies flat; of a dark disc the texture means nothing, and two *far* bars to its left and
right decide, bright for tumour.

    field of view 1 (32 px)    no window of 32 px holds a pixel of a disc and one of its bars: nothing is known of dark discs
    field of view 2 and 4      stripes of 1 px are averaged to exactly the disc's grey: nothing is known of bright discs

Every training leaves a picture of a test slide beside the slides: what was drawn, and where the net looked.

The paper's figures are its mIoU on Cityscapes, where it found the largest gain; only their ratios can be set beside ours.

`clean`: labels are the truth, rows are gazes. `five`: five simulated annotators draw, rows are gazes with methods, which no paper has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from casebook import (
    CaseNotFoundError,
    CaseRow,
    Cohort,
    Layer,
    describe_case,
    open_case,
    open_cohort,
    write_case,
    write_cohort,
)
from rayters.annotators.simulate import FIVE
from rayters.gaze import AverageGaze, EnsembleGaze, FixedGaze, FoveationGaze, Gaze, RandomGaze
from rayters.inference.maps import Maps
from rayters.methods import AnnotatorConfusion, MajorityVote, Method
from rayters.networks.backbone import UNet
from rayters.patches.sampling import Sampling
from rayters.reports.rows import Row
from rayters.training.run import Run, to_json
from rayters.tuning.sweep import Report
from reproduce_pairs import Measured, Pair
from reproduce_study import Measure, Study, scores, summary, train_and_test

SIDE_PX, CELL_PX = 432, (24, 108)  # of a slide, and of its cells, each with one disc
DISC_PX, BAR_PX, GAP_PX = 16, 8, 32  # a disc, a bar as tall as it, and what is between them
TILE_PX, VIEWS = 32, (1.0, 2.0, 4.0)
TUMOUR = 1 / 3  # of the discs
GROUND, DISC, STRIPE, BAR, NOISE = 125, 40, 30, 50, 6.0  # grey values
CLASSES = ("background", "tumour")
SPLITS = {"train": 24, "validation": 4, "test": 8}
VOTE = MajorityVote(
    dice=0
)  # a soft Dice rewards drawing what is merely possible, so no view could say that it does not know
Labels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row: what the network sees, whom it believes, and the paper's mIoU on Cityscapes in per cent."""

    title: str
    gaze: Gaze
    method: Method = VOTE
    setting: Literal["clean", "five"] = "clean"
    paper: float | None = None


FOVEATION = FoveationGaze(fields_of_view=VIEWS)
PAPER_FIXED = 70.6  # mIoU of the paper's best fixed patch there
TABLE: Mapping[str, Entry] = {
    "fixed_1": Entry(title="fixed, field of view 1", gaze=FixedGaze(field_of_view=1.0)),
    "fixed_2": Entry(title="fixed, field of view 2", gaze=FixedGaze(field_of_view=2.0)),
    "fixed_4": Entry(title="fixed, field of view 4", gaze=FixedGaze(field_of_view=4.0)),
    "random": Entry(title="random", gaze=RandomGaze(fields_of_view=VIEWS), paper=50.3),
    "average": Entry(title="average", gaze=AverageGaze(fields_of_view=VIEWS), paper=56.6),
    "ensemble": Entry(title="ensemble, a network per view", gaze=EnsembleGaze(fields_of_view=VIEWS), paper=72.5),
    "mean": Entry(title="foveation, mean", gaze=FOVEATION, paper=76.1),
    "pixels": Entry(title="foveation, mean of pixels (as published)", gaze=replace(FOVEATION, blend="pixels"), paper=76.1),
    "mode": Entry(title="foveation, mode", gaze=replace(FOVEATION, choose="mode"), paper=71.4),
    "gumbel": Entry(title="foveation, Gumbel-softmax", gaze=replace(FOVEATION, choose="gumbel"), paper=70.5),
    "reinforce": Entry(title="foveation, REINFORCE", gaze=replace(FOVEATION, choose="reinforce")),
    "reinforce_free": Entry(
        title="foveation, REINFORCE, entropy not rewarded",
        gaze=replace(FOVEATION, choose="reinforce", entropy_weight=0.0),
    ),
    "fixed_vote": Entry(title="field of view 1, vote", gaze=FixedGaze(), setting="five"),
    "mean_vote": Entry(title="foveation, vote", gaze=FOVEATION, setting="five"),
    "fixed_confusion": Entry(title="field of view 1, confusion", gaze=FixedGaze(), method=AnnotatorConfusion(), setting="five"),
    "mean_confusion": Entry(title="foveation, confusion", gaze=FOVEATION, method=AnnotatorConfusion(), setting="five"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Foveation(Study):
    """Jin et al. 2020: what to look at, on slides where fine and coarse texture decide by turns."""

    only: tuple[str, ...] = tuple(TABLE)  # rows, by key
    epochs: int = 6  # three times as many for the ensemble, of whose networks each sees a third of the patches
    patches: int = 4800  # an epoch's
    width: int = 8
    storage: str = "rayters-runs/reproduce-foveation"

    def hurried(self) -> "Foveation":
        return replace(self, epochs=1, patches=64, width=4, seeds=1)

    def trials(self) -> list[dict[str, Any]]:
        sizes = {"patches": self.patches, "width": self.width}
        return [
            {"row": row, "setting": TABLE[row].setting, "seed": seed, "epochs": self.epochs * _networks(row)}
            | sizes
            | {"gaze": to_json(TABLE[row].gaze), "method": to_json(TABLE[row].method)}
            for row in self.only
            for seed in range(self.seeds)
        ]

    def data(self) -> dict[str, Cohort]:
        return {
            setting: slides(Path(self.storage).absolute() / setting, setting)
            for setting in {TABLE[row].setting for row in self.only}
        }

    @property
    def measure(self) -> Measure:
        return measure

    def lines(self, measured: Sequence[Measured]) -> list[dict[str, Any]]:
        """With the share of the best fixed field of view, ours and the paper's."""
        lines = summary(measured, {key: entry.title for key, entry in TABLE.items()})
        best = max((line["dice"] for line in lines if line["key"] in ("fixed_1", "fixed_2", "fixed_4")), default=None)
        for line in lines:
            line["of_best_fixed"] = line["dice"] / best if best and line["setting"] == "clean" else None
            paper = TABLE[line["key"]].paper
            line |= {"paper_miou": paper, "paper_of_best_fixed": paper / PAPER_FIXED if paper else None}
        return lines

    def pairs(self) -> list[Pair]:
        alone = [
            Pair(setting="clean", ours="mean", peer=row)
            for row in TABLE
            if TABLE[row].setting == "clean" and row != "mean"
        ]
        return alone + [
            Pair(setting="five", ours="mean_confusion", peer=row) for row in ("mean_vote", "fixed_confusion")
        ]

    def rows(self, lines: Sequence[dict[str, Any]]) -> list[Row]:
        return goal_rows({line["key"]: line["dice"] for line in lines})

    def about(self) -> dict[str, Any]:
        splits = " + ".join(map(str, SPLITS.values()))
        size = f"{splits} slides of {SIDE_PX} px, {self.epochs} epochs of {self.patches} patches of {TILE_PX} px, batch 16, "
        return {"experiment": "Jin et al. 2020, generated slides", "protocol": size + f"U-Net of width {self.width}"}


def _networks(row: str) -> int:
    """How many a training divides its patches among."""
    look = TABLE[row].gaze
    return len(look.scales()) if isinstance(look, EnsembleGaze) else 1


def goal_rows(dice: Mapping[str, float]) -> list[Row]:
    """The figures that have a goal."""
    fixed = max((dice[key] for key in ("fixed_1", "fixed_2", "fixed_4") if key in dice), default=None)
    asked = [
        ("foveation mean / best fixed view, Dice", "mean", fixed),
        ("foveation mean / ensemble at equal compute, Dice", "mean", dice.get("ensemble")),
        ("foveation with confusion / foveation alone, Dice", "mean_confusion", dice.get("mean_vote")),
        ("foveation with confusion / confusion alone, Dice", "mean_confusion", dice.get("fixed_confusion")),
    ]
    return [Row(row=name, value=dice[key], reference=peer, goal="> 1") for name, key, peer in asked if key in dice]


def slides(folder: Path, setting: str) -> Cohort:
    """The cohort at ``folder``, made if it is not there; "five" draws the same slides by five annotators."""
    try:
        return open_cohort(str(folder))
    except CaseNotFoundError:
        drawn = FIVE if setting == "five" else FIVE[:1]
    rows: list[CaseRow] = []
    splits = [split for split, number in SPLITS.items() for _ in range(number)]
    for number, split in enumerate(tqdm(splits, desc=f"slides, {setting}")):
        image, truth = slide(number)
        layers = {Layer(id=a.name, tool="simulated"): a.draw(truth) for a in drawn}
        layers |= {Layer(id="reference", role="reference"): truth}
        url = f"{folder}/slide-{number:02d}.ome.zarr"
        write_case(url, image, spacing_um=(0.5, 0.5), classes=CLASSES, layers=layers, existing="replace")
        rows.append(describe_case(open_case(url), split=split, group=str(number)))
    return write_cohort(str(folder), rows, name=f"textures, {setting}", classes=CLASSES, annotators=tuple(a.name for a in drawn),
                        stable_annotators=True, reference="reference")  # fmt: skip


def slide(seed: int, noise: float = NOISE) -> tuple[NDArray[np.uint8], Labels]:
    """(1, Y, X) image and (Y, X) truth. All shapes lie on a grid of 4 px, so that halving twice leaves nothing of the stripes."""
    rng = np.random.default_rng(seed)
    fine = (np.arange(SIDE_PX) < SIDE_PX // 2) ^ bool(
        rng.integers(2)
    )  # per column: discs are bright, and texture decides
    image = np.full((SIDE_PX, SIDE_PX), float(GROUND))
    truth = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    upright, flat = STRIPE * (2 * (x % 2) - 1), STRIPE * (2 * (y % 2) - 1)
    for cell in np.ndindex(SIDE_PX // CELL_PX[0], SIDE_PX // CELL_PX[1]):
        low = np.multiply(cell, CELL_PX) + (0, GAP_PX + BAR_PX) + 4 * rng.integers(1, 3, 2)
        striped, marked = rng.random(2) < TUMOUR
        disc = _disc(truth.shape, low, DISC_PX)
        image += disc * ((DISC if fine[low[1]] else -DISC) + (upright if striped else flat))
        for x in (low[1] - GAP_PX - BAR_PX, low[1] + DISC_PX + GAP_PX):
            image[low[0] : low[0] + DISC_PX, x : x + BAR_PX] += BAR if marked else -BAR
        truth[disc & (striped if fine[low[1]] else marked)] = 1
    image += rng.normal(0, noise, image.shape)
    return image.clip(0, 255).round().astype(np.uint8)[None], truth


def _disc(shape: tuple[int, ...], low: NDArray[np.int64], side: int) -> NDArray[np.bool_]:
    """A disc made of squares of 4 px, in a box of ``side`` px from ``low``."""
    coarse = side // 4
    y, x = np.mgrid[:coarse, :coarse] - (coarse - 1) / 2
    mask = np.zeros(shape, bool)
    inside = np.kron((y**2 + x**2) < (coarse / 2) ** 2, np.ones((4, 4), bool))
    mask[low[0] : low[0] + side, low[1] : low[1] + side] = inside
    return mask


def measure(trial: Mapping[str, Any], cohorts: Mapping[str, Cohort], report: Report) -> dict[str, Any]:
    """One training from one seed, measured against the truth of the test slides, as ``scores``. Leaves a picture of the first one."""
    entry, cohort = TABLE[trial["row"]], cohorts[trial["setting"]]
    run = Run(
        method=entry.method,
        gaze=entry.gaze,
        network=UNet(width=trial["width"]),
        patch_px=(TILE_PX, TILE_PX),
        epochs=trial["epochs"],
        batch_size=16,
        sampling=Sampling(patches_per_epoch=trial["patches"]),
        seed=trial["seed"],
    )
    tested = list(train_and_test(run, cohort))
    _paint_first(cohort, *tested[0][1:], name=f"{trial['row']}-{trial['seed']}.png")
    return scores(tested)


def _paint_first(cohort: Cohort, seen: Maps, truth: Labels, *, name: str) -> None:
    from reproduce_picture import paint_look

    slide = open_case(cohort.split("test").cases[0].url).read_image(0, (0, 0), truth.shape)
    paint_look(Path(cohort.url) / name, slide, truth, seen, widest=VIEWS[-1])
