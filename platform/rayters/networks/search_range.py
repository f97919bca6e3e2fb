"""What a search may change: the range of a field, kept in the field's own metadata."""

from dataclasses import field
from typing import Any


def tunable(default: Any, *, low: float, high: float, log: bool = False) -> Any:
    """A dataclass field whose search range, [low, high], lies in its metadata; ``log`` asks for a logarithmic search."""
    return field(default=default, metadata={"low": low, "high": high, "log": log})


def choice(default: Any, *options: Any) -> Any:
    """A dataclass field that a search picks from ``options``."""
    return field(default=default, metadata={"options": options})
