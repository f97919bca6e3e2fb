"""What is on disk: cases (OME-Zarr images with every annotator's labels) and cohorts (Parquet tables of cases)."""

from casebook.case import Case, Layer
from casebook.cohort import CaseRow, Cohort, describe_case, open_cohort, write_cohort
from casebook.edit import merge, put_cases, remove_cases, save_as, subset
from casebook.errors import (
    CasebookError,
    CaseFormatError,
    CaseNotFoundError,
    ConflictError,
    CorruptChunkError,
    StoreError,
)
from casebook.labels import IGNORE, MAX_CLASSES
from casebook.layers import add_layer, remove_layer
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
    "add_layer",
    "describe_case",
    "merge",
    "open_case",
    "open_cohort",
    "put_cases",
    "remove_cases",
    "remove_layer",
    "save_as",
    "split_by_group",
    "subset",
    "write_case",
    "write_cohort",
]
