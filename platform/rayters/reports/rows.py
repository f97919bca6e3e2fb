"""The rows that every job ends with: printed for people, written as JSON for machines."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure beside the one it is to be compared with.

    row:       what was measured, "ours / peer, on what".
    value:     ours, in ``unit``.
    reference: the peer's, the paper's or the physical limit, in the same unit; None where there is none.
    goal:      what the ratio (or, without a reference, the value) should reach, in words.
    """

    row: str
    value: float
    reference: float | None = None
    unit: str = ""
    goal: str = ""

    @property
    def ratio(self) -> float | None:
        """value / reference; None without a reference, or when it is zero."""
        return self.value / self.reference if self.reference else None

    def as_json(self) -> dict[str, str | float | None]:
        """The row as it is written to a file."""
        return {
            "row": self.row,
            "value": self.value,
            "reference": self.reference,
            "ratio": self.ratio,
            "unit": self.unit,
            "goal": self.goal,
        }


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Writes the rows to a JSON file, whole or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(target.suffix + ".part")
    draft.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")
    draft.replace(target)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A plain text table; the first column is flush left, the others right.

    >>> print(table(["method", "Dice"], [["vote", "0.69"]]))
    method  Dice
    ------  ----
    vote    0.69
    """
    cells = [list(header), *[list(line) for line in lines]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])

    def shown(line: list[str]) -> str:
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *rest]).rstrip()

    return "\n".join(shown(line) for line in cells)


def rows_table(rows: Sequence[Row]) -> str:
    """The rows as a plain text table."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    lines = [[row.row, number(row.value), number(row.reference), number(row.ratio), row.unit, row.goal] for row in rows]
    return table(["", "value", "reference", "ratio", "unit", "goal"], lines)
