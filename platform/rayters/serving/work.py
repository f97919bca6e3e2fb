"""What is asked of a model, and what comes back; both travel between processes."""

from dataclasses import dataclass
from typing import Literal

from casebook import Case

Kind = Literal["labels", "posterior", "uncertainty", "annotator"]
Format = Literal["auto", "png", "npy", "nifti"]


@dataclass(frozen=True, kw_only=True)
class Want:
    """Which map, and how it is coded; annotator names who would draw it."""

    answer: Kind = "labels"
    annotator: str | None = None
    format: Format = "auto"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file that somebody sent, whole."""

    data: bytes


@dataclass(frozen=True, kw_only=True)
class CaseRegion:
    """A box of a case that the server may read, in pixels of level 0; None is all of it. The case travels opened: it is metadata."""

    case: Case
    origin_px0: tuple[int, ...] | None = None
    size_px0: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """model: 'name@version'."""

    model: str
    source: Upload | CaseRegion
    want: Want


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A coded map."""

    body: bytes
    media_type: str
    suffix: str
