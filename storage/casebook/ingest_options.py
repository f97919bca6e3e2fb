"""What an ingest is asked to do, and what became of it."""

from dataclasses import dataclass
from typing import Literal

from casebook.cohort import Cohort


@dataclass(frozen=True, kw_only=True)
class Ingest:
    """What to take, how to read it, and where to put it."""

    source: str
    """Folder with the images and masks."""
    to: str
    """URL of the cohort: a folder, s3://bucket/name ..."""
    images: str | None = None
    """Pattern of the images, relative to the folder, with {case} and perhaps {split}. Without it the layout is
    guessed.
    """
    labels: str | None = None
    """Pattern of the masks, with {case} and {annotator}, perhaps {class} (one binary file per class)."""
    skip: tuple[str, ...] = ()
    """Annotators to leave out, as patterns: 'crowd_*'."""
    reference: str | None = None
    """The annotator whose masks are the reference: used in reports, never for learning."""
    classes: tuple[str, ...] = ("background", "foreground")
    """Names of the values 0, 1, 2 ..."""
    values: tuple[str, ...] = ()
    """What each value in the mask files means: '0=background' '128=tumour' '255=IGNORE'. Without it the values are
    the classes.
    """
    threshold: float | None = None
    """For grey masks of two classes: above it is foreground."""
    empty: Literal["background", "ignore"] = "background"
    """What a mask without any foreground means: 'background', nothing is there; 'ignore', this annotator gave no
    opinion.
    """
    identities: Literal["stable", "anonymous"] = "stable"
    """'anonymous': the same annotator name is not the same person in every case (LIDC's readers)."""
    group: str | None = None
    """Regular expression on the case's name; its first group (or all of it) names the patient: 'LIDC-IDRI-\\d+'.
    Without: every case its own.
    """
    split: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Fractions of train, validation and test, by group. A {split} in --images overrides it."""
    seed: int = 0
    """Of the split."""
    floats: tuple[float, float] | None = None
    """Range of float images that is mapped to 16 bits. Without: 0..1, 0..255 or 0..65535 if it holds them, else
    the image's own.
    """
    spacing_um: tuple[float, ...] | None = None
    """Pixel size in micrometres, (y x) or (z y x); overrides the files. Files that do not say get 1."""
    name: str | None = None
    """Of the cohort; the folder's name without it."""
    licence: str | None = None
    """Of the data, kept in the cohort."""
    codec: Literal["zstd", "lz4"] = "zstd"
    """zstd is small, lz4 fast."""
    side_by_side: int | None = None
    """Cases that are written at once, each with its image in memory unless that is a slide; without: one per core, four at most."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """One line of the report. severity: 'failed' (something was not ingested) or 'note'."""

    severity: str
    file: str
    seen: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an ingest."""

    cohort: Cohort | None
    written: int
    skipped: int
    notes: tuple[Note, ...]
    patterns: tuple[str, str]

    @property
    def failures(self) -> tuple[Note, ...]:
        return tuple(note for note in self.notes if note.severity == "failed")
