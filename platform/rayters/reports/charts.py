"""The pictures of a leaderboard as SVG, drawn in the page's own colours so that they follow light and dark.

Numbers are in the tables beside them; a picture is for the shape.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from rayters.reports.leaderboard import Entry, short

WIDTH, HEIGHT, EDGE = 640, 300, 34


def parallel_coordinates(entries: Sequence[Entry], names: Sequence[str]) -> str:
    """One line per entry over one axis per parameter, the criterion last; the best entry in the accent's colour, gaps where it has none."""
    seen = [each for each in entries if each.seeds]
    axes = [[each.candidate.get(name) for each in seen] for name in names] + [[each.mean("dice") for each in seen]]
    titles = [*(name.split(".")[-1] for name in names), "Dice"]
    x = np.linspace(EDGE, WIDTH - EDGE, len(axes))
    heights = [_heights(values) for values in axes]
    lines = []
    for index in reversed(range(len(seen))):  # the best is drawn last, on top
        path = _path([(x[axis], heights[axis][index]) for axis in range(len(axes))])
        lines.append(f'<path d="{path}" class="{"hot" if index == 0 else "line"}"/>')
    frame = [
        f'<line x1="{at:.0f}" x2="{at:.0f}" y1="{EDGE}" y2="{HEIGHT - EDGE}" class="axis"/>'
        f'<text x="{at:.0f}" y="{16 if axis % 2 == 0 else 28}" text-anchor="middle">{escape(title[:16])}</text>'
        f'<text x="{at:.0f}" y="{HEIGHT - (18 if axis % 2 == 0 else 5)}" text-anchor="{_anchor(axis, len(axes))}" '
        f'class="dim">{escape(_ends(values))}</text>'
        for axis, (at, title, values) in enumerate(zip(x, titles, axes, strict=True))
    ]
    return _svg("".join(frame + lines), "parallel coordinates of the candidates")


def learning_curves(entries: Sequence[Entry]) -> str:
    """Agreement after each epoch, every seed of every entry a line; those of the best entry in the accent's colour."""
    curves = [(index, each.curve) for index, entry in enumerate(entries) for each in entry.seeds if len(each.curve)]
    if not curves:
        return ""
    longest = max(len(curve) for _, curve in curves)

    def place(epoch: int, value: float) -> tuple[float, float]:
        across = EDGE + (WIDTH - 2 * EDGE) * epoch / max(longest - 1, 1)
        return across, HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * value

    lines = [
        f'<path d="{_path([place(e, v) for e, v in enumerate(curve)])}" class="{"hot" if index == 0 else "line"}"/>'
        for index, curve in sorted(curves, key=lambda each: -each[0])
    ]
    grid = [
        f'<line x1="{EDGE}" x2="{WIDTH - EDGE}" y1="{place(0, v)[1]:.0f}" y2="{place(0, v)[1]:.0f}" class="axis"/>'
        f'<text x="{EDGE - 5}" y="{place(0, v)[1] + 4:.0f}" text-anchor="end" class="dim">{v:g}</text>'
        for v in (0, 0.5, 1)
    ]
    below = f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle" class="dim">epoch 1 to {longest}</text>'
    return _svg("".join([*grid, *lines, below]), "learning curves")


def bars(shares: Sequence[tuple[str, float]]) -> str:
    """One bar per name; shares in [0, 1]."""
    rows = [
        f'<div class="bar"><span>{escape(name)}</span><i style="width:{100 * share:.1f}%"></i><b>{share:.0%}</b></div>'
        for name, share in shares
    ]
    return f'<div class="bars">{"".join(rows)}</div>'


def _heights(values: Sequence[object]) -> list[float]:
    """A height per value, NaN for None: numbers to scale, words evenly in alphabetical order."""
    known = [value for value in values if value is not None]
    numbers = all(isinstance(value, int | float) for value in known)
    words = sorted({str(value) for value in known})
    raw = [np.nan if v is None else float(v) if numbers else float(words.index(str(v))) for v in values]  # type: ignore[arg-type]
    low, high = (np.nanmin(raw), np.nanmax(raw)) if known else (0.0, 1.0)
    span = HEIGHT - 2 * EDGE
    wide = high - low if high > low else 1.0  # a gap stays NaN, also on an axis of one value
    return [HEIGHT - EDGE - span * ((value - low) / wide + (0.0 if high > low else 0.5)) for value in raw]


def _ends(values: Sequence[object]) -> str:
    """The range of an axis, or its words."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int | float) for value in known):
        return f"{short(min(known))}–{short(max(known))}"  # type: ignore[type-var]
    return " ".join(sorted({str(value)[:9] for value in known}))[:24]


def _anchor(axis: int, axes: int) -> str:
    """Words at the two edges grow inwards."""
    return "start" if axis == 0 else "end" if axis == axes - 1 else "middle"


def _path(points: Sequence[tuple[float, float]]) -> str:
    """SVG's d; a new stroke after each gap."""
    parts, pen = [], "M"
    for x, y in points:
        if np.isnan(y):
            pen = "M"
            continue
        parts.append(f"{pen}{x:.1f},{y:.1f}")
        pen = "L"
    return "".join(parts)


def _svg(inner: str, label: str) -> str:
    return (
        f'<div class="scroll"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{inner}</svg></div>'
    )
