"""A picture of one case: the image, what each annotator drew, what each method believes, and whom it believes.

    row 1   image | annotator 1 | ... | annotator A | reference
    row 2   per method: its consensus, outlined by the reference where there is one, and its P(foreground)
    row 3   per method, A confusion matrices as the method sees them (and one line with the true ones)

Volumes are shown by the slice with most foreground.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from casebook import IGNORE, Cohort, open_case
from rayters.inference.whole import SeenCase
from rayters.reports.assessment import Assessment

CROP_PX = 112  # a panel shows at most so much of a side: details must be seen


def paint(path: str | Path, cohort: Cohort, seen: Sequence[SeenCase], assessed: Sequence[Assessment]) -> None:
    """Writes the picture as PNG. ``seen`` holds the same case as each method sees it, in the order of ``assessed``."""
    annotators = len(cohort.annotators)
    columns = max(annotators + 2, 4)
    rows = 2 + len(assessed) + (assessed[0].true is not None)
    heights = [1.0, 1.0, *[0.62] * (rows - 2)]
    size = (1.9 * columns, 2.1 * sum(heights))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", height_ratios=heights)
    for panel in axes.flat:
        panel.axis("off")
    window = _window(seen[0])
    image = _picture(cohort, seen[0], window)
    _image(axes[0][0], image, "image")
    for index, name in enumerate(cohort.annotators):
        _labels(axes[0][1 + index], image, seen[0].labels[index][window], len(cohort.classes), name)
    if seen[0].reference is not None:
        _labels(axes[0][annotators + 1], image, seen[0].reference[window], len(cohort.classes), "reference")
    for index, (case, found) in enumerate(zip(seen, assessed, strict=True)):
        title = found.method if found.dice is None else f"{found.method}\nDice {found.dice.mean():.3f}"
        _labels(axes[1][2 * index], image, case.posterior.argmax(0)[window], len(cohort.classes), title)
        if case.reference is not None:
            axes[1][2 * index].contour(_known(case.reference[window]), levels=[0.5], colors="white", linewidths=0.7)
        axes[1][2 * index + 1].imshow(1 - case.posterior[(0, *window)], cmap="magma", vmin=0, vmax=1)
        axes[1][2 * index + 1].set_title("P(foreground)", fontsize=8)
        _confusions(
            axes[2 + index],
            found.estimated,
            cohort.annotators,
            f"{found.method}:\n{'learnt' if found.learnt else 'counted'}",
        )
    if assessed[0].true is not None:
        _confusions(axes[-1], assessed[0].true, cohort.annotators, "true\nconfusions")
    figure.suptitle(f"{cohort.name}: case {seen[0].row.case}", fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _window(case: SeenCase) -> tuple[int | slice, ...]:
    """The slice with most foreground, and around its centre at most CROP_PX of each side."""
    drawn = ((case.labels > 0) & (case.labels != IGNORE)).sum(0)
    index: list[int | slice] = []
    if drawn.ndim == 3:
        index.append(int(drawn.sum((1, 2)).argmax()))
        drawn = drawn[index[0]]
    weights = drawn + 1e-9
    for axis, side in enumerate(drawn.shape):
        centre = int((weights.sum(1 - axis) * np.arange(side)).sum() / weights.sum())
        start = max(0, min(centre - CROP_PX // 2, side - CROP_PX))
        index.append(slice(start, start + CROP_PX))
    return tuple(index)


def _picture(cohort: Cohort, case: SeenCase, window: tuple[int | slice, ...]) -> NDArray[np.float64]:
    """The image in the window, (Y, X) or (Y, X, 3), stretched to [0, 1]."""
    del cohort
    opened = open_case(case.row.url)
    starts = [index if isinstance(index, int) else index.start for index in window]
    stops = [
        index + 1 if isinstance(index, int) else min(index.stop, n)
        for index, n in zip(window, opened.shapes[0], strict=True)
    ]
    raw = opened.read_image(0, starts, [stop - start for start, stop in zip(starts, stops, strict=True)]).astype(float)
    raw = raw[:, 0] if raw.ndim == 4 else raw
    low, high = np.percentile(raw, (0.5, 99.5))
    shown = ((raw - low) / max(high - low, 1e-9)).clip(0, 1)
    return np.moveaxis(shown, 0, -1) if len(shown) == 3 else shown[0]


def _image(panel: Axes, image: NDArray[np.float64], title: str) -> None:
    panel.imshow(image, cmap="gray", vmin=0, vmax=1)
    panel.set_title(title, fontsize=8)


def _known(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """1 for any class, 0 for background and for what nobody looked at."""
    known: NDArray[np.uint8] = ((labels > 0) & (labels != IGNORE)).astype(np.uint8)
    return known


def _labels(panel: Axes, image: NDArray[np.float64], labels: NDArray[np.generic], classes: int, title: str) -> None:
    """The labels over the image: one colour per class, grey hatching where nobody looked."""
    _image(panel, image * 0.55, title)
    shown = np.ma.masked_where((labels == 0) | (labels == IGNORE), labels.astype(int))
    panel.imshow(shown, cmap="Set1", vmin=1, vmax=max(9, classes), alpha=0.8, interpolation="nearest")
    if (labels == IGNORE).all():
        panel.text(
            0.5, 0.5, "did not look", color="white", ha="center", va="center", transform=panel.transAxes, fontsize=8
        )


def _confusions(panels: Sequence[Axes], confusion: NDArray[np.float64], annotators: Sequence[str], title: str) -> None:
    panels[0].text(0.5, 0.5, title + "\n\nrows: written\ncolumns: truth", ha="center", va="center", fontsize=8)
    for panel, matrix, name in zip(panels[1:], confusion, annotators, strict=False):
        panel.axis("on")
        panel.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        panel.set_title(name, fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
        for (i, j), value in np.ndenumerate(matrix if len(matrix) <= 4 else np.zeros((0, 0))):
            panel.text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value > 0.6 else "black"
            )
