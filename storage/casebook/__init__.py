"""What is on disk: cases (OME-Zarr images with every annotator's labels) and cohorts (Parquet tables of cases)."""

from casebook.case import Case, Layer
from casebook.cohort import CaseRow, Cohort, describe_case, open_cohort, write_cohort
from casebook.errors import (
    CasebookError,
    CaseFormatError,
    CaseNotFoundError,
    ConflictError,
    CorruptChunkError,
    StoreError,
)
from casebook.labels import IGNORE, MAX_CLASSES
from casebook.opening import open_case
from casebook.split import split_by_group
from casebook.write import write_case

__all__ = [
    "IGNORE",
    "MAX_CLASSES",
    "Case",
    "CaseFormatError",
    "CaseNotFoundError",
    "CaseRow",
    "CasebookError",
    "Cohort",
    "ConflictError",
    "CorruptChunkError",
    "Layer",
    "StoreError",
    "describe_case",
    "open_case",
    "open_cohort",
    "split_by_group",
    "write_case",
    "write_cohort",
]
