"""Pictures of a cohort: its most disputed cases with everyone's outlines, and everyone's agreement with everyone."""

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from casebook import IGNORE, Case, Cohort, open_case
from rayters.annotators.agreement import cohen_kappa, pairwise_dice
from rayters.reports.cohort_agreement import Looked

COLOURS = ("#e64b35", "#4dbbd5", "#00a087", "#f39b7f", "#3c5488", "#91d1c2", "#dc0000", "#7e6148", "#b09c85", "#8491b4")


def draw(cohort: Cohort, looked: Looked, folder: Path, shown: int) -> list[Path]:
    """The two pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = sorted(cohort.cases, key=lambda r: -sum(r.disagreement) / math.prod(r.shape))[:shown]
    return [draw_cases(cohort, chosen, folder / "cases.png"), draw_agreement(cohort, looked, folder / "agreement.png")]


def draw_cases(cohort: Cohort, chosen: list[Any], path: Path) -> Path:
    """The cases with most disagreement: the picture, everyone's outlines on it, and how many marked each pixel."""
    figure, axes = plt.subplots(len(chosen), 3, figsize=(11, 3.5 * len(chosen)), squeeze=False, layout="constrained")
    for line, row in zip(axes, chosen, strict=True):
        case = open_case(row.url)
        picture, layers = flat_view(case, cohort.annotators)
        marked = ((layers > 0) & (layers != IGNORE)).sum(0)
        for ax in line[:2]:
            ax.imshow(picture, cmap="gray")
        for index, layer in enumerate(layers):
            mask = (layer > 0) & (layer != IGNORE)
            if mask.any() and not mask.all():
                line[1].contour(mask, [0.5], colors=[COLOURS[index % len(COLOURS)]], linewidths=1)
        shade = line[2].imshow(marked, cmap="magma", vmin=0, vmax=max(1, (layers != IGNORE).any(axis=(1, 2)).sum()))
        figure.colorbar(shade, ax=line[2], label="annotators who marked it", shrink=0.8)
        line[0].set_title(f"{row.case} ({row.split})", fontsize=9)
        line[1].set_title(f"outlines of {len(row.annotators)} annotators", fontsize=9)
    for ax in axes.ravel():
        ax.set_axis_off()
    lines = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=who) for i, who in enumerate(cohort.annotators)]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(6, len(lines)), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def flat_view(case: Case, people: tuple[str, ...]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """A picture (Y, X[, 3]) in 0..1 and the layers (A, Y, X) beside it; of a volume the slice where most was marked."""
    level = next((k for k, s in enumerate(case.shapes) if max(s) <= 1024), len(case.shapes) - 1)
    origin, size = (0,) * len(case.axes), case.shapes[level]
    image, layers = (
        case.read_image(level, origin, size).astype(np.float32),
        case.read_labels(people, level, origin, size),
    )
    if len(case.axes) == 3:
        most = int(((layers > 0) & (layers != IGNORE)).sum(axis=(0, 2, 3)).argmax())
        image, layers = image[:, most], layers[:, most]
    low, high = np.percentile(image, (0.5, 99.5))
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    return (np.moveaxis(scaled, 0, -1) if len(image) == 3 else scaled[0]), layers


def draw_agreement(cohort: Cohort, looked: Looked, path: Path) -> Path:
    """Everyone against everyone."""
    size = 2.5 + 0.45 * len(cohort.annotators)
    figure, axes = plt.subplots(1, 2, figsize=(2.2 * size, size), layout="constrained")
    for ax, values, title in zip(
        axes, (pairwise_dice(looked.counts), cohen_kappa(looked.counts)), ("Dice", "Cohen's kappa"), strict=True
    ):
        shade = ax.imshow(values, cmap="viridis", vmin=0, vmax=1)
        ax.set_xticks(range(len(values)), cohort.annotators, rotation=90, fontsize=8)
        ax.set_yticks(range(len(values)), cohort.annotators, fontsize=8)
        ax.set_title(title)
        for a, b in np.ndindex(values.shape):
            if np.isfinite(values[a, b]):
                ax.text(
                    b,
                    a,
                    f"{values[a, b]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="black" if values[a, b] > 0.6 else "white",
                )
    figure.colorbar(shade, ax=axes, shrink=0.7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
