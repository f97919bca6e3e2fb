"""Pictures of an experiment: a table with all its seeds, and the paper's figures where it has any; a slide and where a net looked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from rayters.inference.maps import Maps

OURS, PAPER = "#1f6f8b", "#c8553d"


def paint(path: str | Path, lines: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Writes a panel for each setting, rows in the order of the table. ``paper`` of a line: as a share of its oracle."""
    settings = list(dict.fromkeys(line["setting"] for line in lines))
    parts = {setting: [line for line in lines if line["setting"] == setting] for setting in settings}
    columns = min(2, len(settings))
    rows = -(-len(settings) // columns)
    height = rows * (0.9 + 0.26 * max(len(part) for part in parts.values()))
    figure, panels = plt.subplots(
        rows, columns, figsize=(5.6 * columns, height + 0.4), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(settings) :]:
        panel.axis("off")
    for panel, (setting, part) in zip(panels.flat, parts.items(), strict=False):
        _panel(panel, part)
        panel.set_title(setting, fontsize=10)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def paint_look(path: str | Path, image: NDArray[Any], truth: NDArray[Any], seen: Maps, *, widest: float) -> None:
    """Writes a slide (1, Y, X), what is true of it, what the net drew and, if it chose, at which field of view it looked, all (Y, X)."""
    parts = {"slide": image[0], "tumour": truth, "drawn by the net": seen.labels}
    parts |= {} if seen.gaze is None else {"field of view it chose": seen.gaze}
    figure, panels = plt.subplots(1, len(parts), figsize=(3.2 * len(parts), 3.5), layout="constrained")
    for panel, (title, part) in zip(panels, parts.items(), strict=True):
        if part is seen.gaze:
            shown = panel.imshow(part, cmap="viridis", vmin=1, vmax=widest)
            figure.colorbar(shown, ax=panel, shrink=0.7, label="x tile")
        else:
            panel.imshow(part, cmap="gray")
        panel.set_title(title, fontsize=10)
        panel.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(panel: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    scale = next((line["dice"] / line["of_ceiling"] for line in lines if line.get("of_ceiling")), 1.0)
    for place, line in enumerate(reversed(lines)):
        panel.hlines(place, 0, line["dice"] / scale, color=OURS, alpha=0.25, linewidth=6)
        panel.scatter([one / scale for one in line["each_dice"]], [place] * line["seeds"], color=OURS, s=12, zorder=3)
        if line.get("paper"):
            panel.scatter(line["paper"], place, marker="D", facecolors="none", edgecolors=PAPER, s=34, zorder=4)
    panel.set_yticks(range(len(lines)), [line["title"] for line in reversed(lines)], fontsize=8)
    panel.set_xlim(0, 1.05)
    panel.set_ylim(-0.6, len(lines) - 0.4)
    panel.axvline(1.0, color="grey", linewidth=0.6)
    panel.set_xlabel(
        "Dice" if scale == 1.0 else "Dice / clean-label ceiling (diamonds: the paper's, of its oracle)", fontsize=8
    )
