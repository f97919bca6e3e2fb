"""The embedded demo cohort: sheets of real handwritten digits, drawn by five simulated annotators; made in seconds, no download."""

import os

from tqdm import tqdm

from casebook import (
    CaseNotFoundError,
    CaseRow,
    Cohort,
    Layer,
    describe_case,
    open_case,
    open_cohort,
    write_case,
    write_cohort,
)
from rayters.annotators.digits import Sheets, digit_sheets

TRAIN, VALIDATION = 20, 3  # sheets; the rest is for the test
SPACING_UM = (1.0, 1.0)


def demo_cohort(url: str | os.PathLike[str], *, sheets: int = 28, seed: int = 0) -> Cohort:
    """The cohort at ``url``, made if it is not there: one case per sheet, layers good, over, under, wrong, blank and the reference.

    sheets: more than ``TRAIN + VALIDATION``, at most 28. Every sheet is a group of its own: no digit is in two splits.
    """
    try:
        return open_cohort(url)
    except CaseNotFoundError:
        drawn = digit_sheets(sheets=sheets, seed=seed)
    rows = [
        _write_sheet(f"{url}/sheet-{index:02d}.ome.zarr", drawn, index)
        for index in tqdm(range(sheets), desc="demo cohort")
    ]
    return write_cohort(
        url,
        rows,
        name="demo digits",
        classes=drawn.classes,
        annotators=drawn.annotators,
        stable_annotators=True,
        reference="reference",
        licence="BSD-3-Clause (scikit-learn's digits; E. Alpaydin, C. Kaynak, UCI, CC BY 4.0)",
    )


def _write_sheet(url: str, drawn: Sheets, index: int) -> CaseRow:
    layers = {
        Layer(id=name, tool="simulated"): drawn.labels[index, annotator]
        for annotator, name in enumerate(drawn.annotators)
    } | {Layer(id="reference", role="reference"): drawn.reference[index]}
    write_case(
        url, drawn.images[index], spacing_um=SPACING_UM, classes=drawn.classes, layers=layers, existing="replace"
    )
    split = "train" if index < TRAIN else "validation" if index < TRAIN + VALIDATION else "test"
    return describe_case(open_case(url), split=split, group=f"sheet-{index:02d}")
