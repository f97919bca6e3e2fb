"""Export layers for other programs, and the net for other runtimes.

    python jobs/export.py --format geojson --cohort cohorts/slides --layer rayters --to export                   QuPath
    python jobs/export.py --format nifti --cohort cohorts/ct --layer rayters --like "my-ct/{case}/image.nii.gz" --to export
    python jobs/export.py --format dicom-seg --cohort cohorts/ct --layer rayters --like "dicom/{case}" --to export
    python jobs/export.py --format net --model MODEL --to net.pt2                                                torch.export

A layer is any that a case has: an annotator's, a fused one, or what jobs/predict.py wrote. --like names the original image of each
case, from which NIfTI takes the place in the patient, and to which a DICOM-SEG refers.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from casebook import Case, CasebookError, CaseFormatError, open_case, open_cohort
from casebook.formats import open_image
from casebook.one_pass import case_factors
from rayters.inference.export_net import export_net
from rayters.inference.weights import pack
from rayters.reports.rows import Row, rows_table, write_rows

MOST_PIXELS = 2**28  # of a layer that is held in memory
SUFFIX = {"geojson": ".geojson", "nifti": ".nii.gz", "dicom-seg": ".dcm"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """Export a layer of every case, or a net."""

    format: Literal["geojson", "nifti", "dicom-seg", "net"]  # what to write
    to: Path  # folder of the files; of a net the file
    cohort: str | None = None  # URL of a cohort
    layer: str = "rayters"  # id of the layer
    like: str | None = None  # original image of a case, {case} stands for its name
    split: Literal["all", "train", "validation", "test"] = "all"  # which cases
    level: int | None = None  # of the pyramid, for GeoJSON; none: the finest of at most 2**28 pixels
    model: str | None = None  # folder or URL of a model, for a net
    json: str | None = None  # write the table's rows to this file


def main(job: Job) -> int:
    """Exports, prints what was and what was not."""
    if job.format == "net":
        return _net(job)
    if job.cohort is None:
        raise ValueError(f"--format {job.format} exports layers of a cohort: give --cohort")
    cohort = open_cohort(job.cohort)
    cohort = cohort if job.split == "all" else cohort.split(job.split)
    job.to.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    for row in tqdm(cohort.cases, desc=job.format, unit="case"):
        try:
            _export(job, open_case(row.url), row.case)
        except (CasebookError, ValueError) as error:
            failed[row.case] = str(error)
    rows = [Row(row="files written", value=float(len(cohort.cases) - len(failed)), reference=float(len(cohort.cases)))]
    print(f"\n{rows_table(rows)}\n")
    for case, why in failed.items():
        print(f"failed   {case}: {why}")
    print(f"files    {job.to}")
    if job.json:
        write_rows(rows, job.json)
    return int(bool(failed))


def _net(job: Job) -> int:
    if job.model is None:
        raise ValueError("--format net exports a model: give --model")
    job.to.parent.mkdir(parents=True, exist_ok=True)
    export_net(pack((job.model,))[0].unpack(), job.to)
    print(f"net      {job.to}")
    return 0


def _export(job: Job, case: Case, name: str) -> None:
    """One layer of one case into one file."""
    if job.layer not in {layer.id for layer in case.layers}:
        raise CaseFormatError(
            f"no layer {job.layer!r}: the case has {', '.join(layer.id for layer in case.layers) or 'none'}; choose another --layer"
        )
    path, like = str(job.to / f"{name}{SUFFIX[job.format]}"), job.like.format(case=name) if job.like else None
    if job.format == "geojson":
        _geojson(job, case, path)
    elif job.format == "nifti":
        from casebook.exports.nifti import write_nifti

        frame = open_image(like).frame if like else None
        write_nifti(path, _labels(case, job.layer, 0), case.spacing_um[0], frame)
    else:
        from casebook.exports.dicom_seg import write_dicom_seg

        if like is None:
            raise ValueError(
                "a DICOM-SEG refers to the series it belongs to: name it with --like, as in --like 'dicom/{case}'"
            )
        write_dicom_seg(path, _labels(case, job.layer, 0), case.classes, like, made_by=job.layer)


def _geojson(job: Job, case: Case, path: str) -> None:
    from casebook.exports.geojson import write_geojson

    if len(case.shapes[0]) != 2:
        raise CaseFormatError("polygons are flat, this case is a volume: export it as NIfTI")
    fit = [level for level, shape in enumerate(case.shapes) if np.prod(shape) <= MOST_PIXELS]
    level = (fit[0] if fit else len(case.shapes) - 1) if job.level is None else job.level
    write_geojson(path, _labels(case, job.layer, level), case.classes, scale=case_factors(case)[level])


def _labels(case: Case, layer: str, level: int) -> NDArray[np.uint8]:
    shape = case.shapes[level]
    if np.prod(shape) > MOST_PIXELS:
        raise CaseFormatError(f"level {level} has {shape} px, more than is held in memory: choose a coarser --level")
    return case.read_labels((layer,), level, (0,) * len(shape), shape)[0]


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Job, description=__doc__)))
    except (CasebookError, ValueError) as error:
        sys.exit(f"error: {error}")
