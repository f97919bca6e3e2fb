"""Zhang et al. 2020 on MNIST: jobs/reproduce.py mnist.

Five annotators are simulated on real digits (good, over, under, wrong, blank); the network sees the digit through heavy noise and never a
clean label. *dense*: all five draw every digit; *one*: each digit has one annotator, at random. Dice is the mean over test digits.
"""

import gzip
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from casebook import IGNORE
from rayters.annotators.simulate import FIVE, draw_all
from rayters.annotators.staple import spatial_staple
from rayters.methods import (
    AnnotatorConfusion,
    DawidSkene,
    KnownConfusion,
    MajorityVote,
    MeanLabels,
    Method,
    OneAnnotator,
    ProbabilisticUNet,
    RandomAnnotator,
    Staple,
)
from rayters.methods.annotator_confusion import AS_PUBLISHED
from rayters.metrics.confusion_error import confusion_rmse, count_confusion, reliability_rank_correlation, sum_estimate
from rayters.metrics.overlap import dice_per_image
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.reports.rows import Row
from rayters.training.loop import Epoch, Stream, fit
from rayters.training.run import Run, to_json
from rayters.training.step import to_device
from rayters.training.team import Team
from rayters.tuning.sweep import Report
from reproduce_pairs import Measured, Pair
from reproduce_study import Measure, Study, summary

MNIST = "../shared/data/mnist-annotators/t10k-images-idx3-ubyte.gz"
NOISE = 0.5  # standard deviation of the Gaussian on an intensity in [0, 1]; the clean ceiling is then about .92
SIDE_PX = 28
ORACLE = 83.29  # the paper's Dice with the true confusions given, in per cent
Setting = Literal["dense", "one"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the table: a method, how its labels are prepared, and the paper's Dice and confusion error in per cent and RMSE."""

    title: str
    method: Method | tuple[Method, ...]  # several: a network each, and the mean of their posteriors
    labels: Literal["annotators", "clean", "spatial_staple"] = "annotators"
    dense: tuple[float, float | None] | None = None
    one: tuple[float, float | None] | None = None


OURS = AnnotatorConfusion()
TABLE: Mapping[str, Entry] = {
    "ceiling": Entry(title="clean labels (ceiling)", method=MajorityVote(dice=0), labels="clean"),
    "ours": Entry(title="ours", method=OURS, dense=(82.92, 0.0893), one=(76.48, 0.1329)),
    "ours_no_trace": Entry(
        title="ours, trace weight 0", method=replace(OURS, trace_weight=0.0), dense=(79.63, 0.1125), one=(74.48, 0.1538)
    ),
    "vote_anchor": Entry(title="ours, held to the plain vote", method=replace(OURS, anchor="vote")),
    "paper": Entry(title="as published, trace .1", method=AS_PUBLISHED, dense=(82.92, 0.0893), one=(76.48, 0.1329)),
    "paper_no_trace": Entry(
        title="as published, no trace",
        method=replace(AS_PUBLISHED, trace_weight=0.0),
        dense=(79.63, 0.1125),
        one=(74.48, 0.1538),
    ),
    "shared": Entry(title="shared-truth likelihood, as published", method=replace(AS_PUBLISHED, likelihood="shared")),
    "ours_shared": Entry(title="ours, shared-truth likelihood", method=replace(OURS, likelihood="shared")),
    "global": Entry(title="global confusions", method=replace(AS_PUBLISHED, level="global"), dense=(79.21, None)),
    "mode": Entry(title="majority vote (mode)", method=MajorityVote(dice=0), dense=(62.89, None), one=(32.79, None)),
    "mean": Entry(title="mean labels", method=MeanLabels(), dense=(38.36, None)),
    "staple": Entry(title="STAPLE", method=Staple(), dense=(78.03, 0.1241), one=(54.07, 0.2617)),
    "spatial_staple": Entry(
        title="Spatial STAPLE",
        method=MajorityVote(dice=0),
        labels="spatial_staple",
        dense=(78.96, 0.1195),
        one=(56.73, 0.2384),
    ),
    "dawid_skene": Entry(title="Dawid-Skene", method=DawidSkene()),
    "probabilistic": Entry(title="Probabilistic U-Net", method=ProbabilisticUNet()),
    "random": Entry(title="a random annotator per step", method=RandomAnnotator()),
    "separate": Entry(
        title="a network per annotator, averaged",
        method=tuple(OneAnnotator(annotator=i) for i in range(len(FIVE))),
        dense=(70.44, None),
    ),
    "oracle": Entry(title="oracle, known global confusions", method=KnownConfusion(), dense=(83.29, 0.0238)),
}


@dataclass(frozen=True, kw_only=True)
class Mnist(Study):
    """Zhang et al. 2020: whom to believe of five annotators, on digits."""

    only: tuple[str, ...] = tuple(TABLE)  # rows, by key
    settings: tuple[Setting, ...] = ("dense", "one")
    seeds_ours: int = 10  # of the row 'ours', and of 'ceiling' with dense labels
    digits: int = 10_000  # split 8 : 1 : 1
    epochs: int = 2  # of dense labels
    epochs_one: int = 5  # of one label per image, a fifth of the labels; without voices 2 were too few
    width: int = 12
    mnist: str = MNIST
    storage: str = "rayters-runs/reproduce-mnist"

    def hurried(self) -> "Mnist":
        return replace(self, digits=300, epochs=1, epochs_one=1, width=4, seeds=1, seeds_ours=1)

    def trials(self) -> list[dict[str, Any]]:
        """One for each row, setting and seed; the clean labels are learnt as long as the setting's own."""
        epochs = {"dense": self.epochs, "one": self.epochs_one}
        many = {("ours", "dense"), ("ours", "one"), ("ceiling", "dense")}
        return [
            {"row": row, "setting": setting, "seed": seed, "digits": self.digits, "epochs": epochs[setting]}
            | {"width": self.width, "noise": NOISE, "method": to_json(TABLE[row].method)}
            for row in self.only
            for setting in self.settings
            for seed in range(self.seeds_ours if (row, setting) in many else self.seeds)
        ]

    def data(self) -> np.ndarray:
        return read_digits(self.mnist)[: self.digits]

    @property
    def measure(self) -> Measure:
        return measure

    def lines(self, measured: Sequence[Measured]) -> list[dict[str, Any]]:
        """With the share of the clean ceiling, and the paper's figures."""
        lines = summary(measured, {key: entry.title for key, entry in TABLE.items()})
        ceilings = {line["setting"]: line["dice"] for line in lines if line["key"] == "ceiling"}
        for line in lines:
            paper = getattr(TABLE[line["key"]], line["setting"]) or (None, None)
            line |= {"paper_dice": paper[0], "paper_rmse": paper[1], "paper": paper[0] / ORACLE if paper[0] else None}
            ceiling = ceilings.get(line["setting"])
            for name, of in (("of_ceiling", "dice"), ("worst_of_ceiling", "worst")):
                line[name] = line[of] / ceiling if ceiling else None
        return lines

    def pairs(self) -> list[Pair]:
        """Ours against every other row."""
        return [Pair(setting=s, ours="ours", peer=row) for s in self.settings for row in TABLE if row != "ours"]

    def rows(self, lines: Sequence[dict[str, Any]]) -> list[Row]:
        return goal_rows({(line["key"], line["setting"]): line for line in lines})

    def about(self) -> dict[str, Any]:
        epochs = f"{self.epochs} epochs of dense labels, {self.epochs_one} of one label per image"
        size = f"{self.digits} digits split 8:1:1, noise {NOISE}, {epochs}, batch 50, U-Net of width {self.width}"
        return {"experiment": "Zhang et al. 2020, MNIST, five simulated annotators", "protocol": size}


def read_digits(path: str) -> np.ndarray:
    """The digits of an IDX file, (N, 28, 28) floats in [0, 1].

    Raises:
        FileNotFoundError: when there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no digits at {path}: download t10k-images-idx3-ubyte.gz (MNIST's test set) and name it with --mnist"
        )
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, SIDE_PX, SIDE_PX) / np.float32(255)


def measure(trial: Mapping[str, Any], images: np.ndarray, report: Report) -> dict[str, Any]:
    """One training from one seed, measured on the test digits: {"dice", "patients", "rmse", "agreement", "astray", "seconds"}."""
    torch.set_num_threads(1)
    started, entry, seed = time.monotonic(), TABLE[trial["row"]], trial["seed"]
    truth = (images > 0.5).astype(np.uint8)
    drawn = np.swapaxes(draw_all(truth), 0, 1)  # (N, A, Y, X)
    rng = np.random.default_rng(0)
    noisy = images[:, None] + rng.normal(0, NOISE, (len(images), 3, SIDE_PX, SIDE_PX)).astype(np.float32)
    labels = prepare(entry, drawn, truth, trial["setting"], seed)
    methods = entry.method if isinstance(entry.method, tuple) else (entry.method,)
    methods = tuple(known(drawn, truth) if isinstance(each, KnownConfusion) else each for each in methods)
    train, test = len(images) * 8 // 10, len(images) * 9 // 10
    run = Run(
        method=methods[0],
        network=UNet(width=trial["width"]),
        patch_px=(SIDE_PX, SIDE_PX),
        epochs=trial["epochs"],
        batch_size=50,
        seed=seed,
        restarts=0,
    )
    task = Task(
        channels=3,
        classes=2,
        annotators=labels.shape[1],
        patch_px=run.patch_px,
        mean=(float(noisy[:train].mean()),) * 3,
        std=(float(noisy[:train].std()),) * 3,
    )
    stream = Stream(
        left=lambda at: train // run.batch_size - at.first_batch,
        train=lambda at: batches(
            noisy[:train], labels[:train], run.batch_size, np.random.default_rng((seed, at.epoch))
        ),
        validation=lambda: batches(noisy[train:test], labels[train:test], run.batch_size, None),
    )
    trained = [(each, fit(replace(run, method=each), task, stream, _Silent(), team=Team())) for each in methods]
    last = trained[-1][1]
    return assess(trained, task, noisy[test:], drawn[test:], truth[test:]) | {
        "agreement": last.measured["agreement"],
        "astray": last.measured["astray"],
        "seconds": time.monotonic() - started,
    }


def prepare(entry: Entry, drawn: np.ndarray, truth: np.ndarray, setting: Setting, seed: int) -> np.ndarray:
    """What the network may learn from: (N, A, Y, X) uint8; with one annotator per digit the others are IGNORE."""
    if entry.labels == "clean":
        return truth[:, None]
    if setting == "one":
        chosen = np.random.default_rng(1000 + seed).integers(len(FIVE), size=len(drawn))
        others = np.arange(len(FIVE)) != chosen[:, None]
        drawn = np.where(others[:, :, None, None], np.uint8(IGNORE), drawn)
    if entry.labels == "spatial_staple":
        return np.stack([spatial_staple(layers, classes=2).layer for layers in drawn])[:, None]
    return drawn


def known(drawn: np.ndarray, truth: np.ndarray) -> KnownConfusion:
    """The oracle: confusions counted against the truth."""
    confusions = count_confusion(drawn, truth, classes=2).confusion
    return KnownConfusion(confusions=tuple(tuple(tuple(map(float, row)) for row in one) for one in confusions))


def batches(
    images: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator | None
) -> Iterator[dict[str, np.ndarray]]:
    """Batches as the stream gives them; shuffled where there is a generator."""
    order = rng.permutation(len(images)) if rng else np.arange(len(images))
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        yield {"views": images[chosen][:, None], "labels": labels[chosen]}


@torch.no_grad()
def assess(
    trained: Sequence[tuple[Method, Epoch]], task: Task, noisy: np.ndarray, drawn: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    """Dice per test digit, its mean, and where one method estimates confusions of all annotators their error, and Spearman's correlation
    of how reliable annotators are estimated to be and are.
    """
    predicted, estimates = [], []
    for first in range(0, len(noisy), 100):
        here = slice(first, first + 100)
        views = to_device({"views": noisy[here][:, None], "labels": drawn[here]}, task, torch.device("cpu")).views
        predictions = [method.predict(last.net.eval()(views)) for method, last in trained]
        predicted.append(sum(each.posterior for each in predictions).argmax(1).numpy())
        if predictions[0].confusion is not None:
            estimates.append(sum_estimate(predictions[0].confusion.numpy(), truth[here]))
    dice = dice_per_image(zip(np.concatenate(predicted), truth, strict=True), classes=2)[:, 0]
    true = count_confusion(drawn, truth, classes=2).confusion
    estimate = sum(estimates[1:], estimates[0]).confusion if estimates else None
    known_to_all = estimate is not None and estimate.shape == true.shape
    rmse = confusion_rmse(estimate, true) if known_to_all else None
    rank = reliability_rank_correlation(estimate, true) if known_to_all else None
    area = float(np.concatenate(predicted).mean() / truth.mean())
    patients = {str(number): float(one) for number, one in enumerate(dice) if np.isfinite(one)}
    return {"dice": float(np.nanmean(dice)), "patients": patients, "rmse": rmse, "rank": rank, "area": area}


class _Silent:
    """Nobody watches a trial."""

    def on_step(self, attempt: int, epoch: int, step: int, parts: Mapping[str, torch.Tensor]) -> None:
        """Nothing."""

    def on_pause(self, net: torch.nn.Module, state: Mapping[str, Any]) -> None:
        """Nothing."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Nothing."""


def goal_rows(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Row]:
    """The figures that have a goal."""
    rows = []
    for setting, goal, worst in (("dense", ">= 0.995", ">= 0.98"), ("one", ">= 0.96", "")):
        line = found.get(("ours", setting))
        if line is None or line["of_ceiling"] is None:
            continue
        name, paper = f"MNIST {setting}: ours", {"dense": 0.9956, "one": 0.918}[setting]
        seeds = f"Dice, {line['seeds']} seeds"
        rows += [
            Row(row=f"{name} / clean-label ceiling, {seeds}", value=line["of_ceiling"], reference=paper, goal=goal),
            Row(row=f"{name}, worst seed / ceiling", value=line["worst_of_ceiling"], goal=worst),
            Row(row=f"{name}, confusion RMSE", value=line["rmse"], reference=line["paper_rmse"], goal="<= 0.02"),
        ]
    return rows
