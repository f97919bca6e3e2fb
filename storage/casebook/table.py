"""A plain table, columns aligned, for the ends of jobs."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, widest: int = 90) -> str:
    """The rows under their header; numbers to the right, a cell longer than `widest` is cut."""
    cells = [[_cut(str(cell), widest) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _cut(text: str, widest: int) -> str:
    return text if len(text) <= widest else text[: widest - 3] + "..."
