"""Turn a folder of images and of every annotator's masks into a cohort.

    python jobs/ingest.py --source FOLDER --to COHORT [options]

Three layouts are recognised without being told:

    one folder per case         case7/image.nii.gz  case7/reader1.nii.gz  case7/reader2.nii.gz
    one folder per annotator    images/case7.png    anna/case7.png        ben/case7.png
    one suffix per annotator    case7.jpg           case7_anna.png        case7_ben.png

Anything else is named with two patterns:

    python jobs/ingest.py --source mnist --to cohorts/mnist --reference GT --threshold 127
        --images "{split}/Gaussian/{case}_Gaussian.tif" --labels "{split}/{annotator}/{case}_{annotator}.tif"
    python jobs/ingest.py --source lidc --to cohorts/lidc --identities anonymous --empty ignore --group "LIDC-IDRI-\\d+"
    python jobs/ingest.py --source slides --to s3://bucket/slides --classes background tumour stroma

Files: PNG, JPEG, BMP, TIFF, NIfTI, NRRD, MetaImage, OME-Zarr; with the extra `formats` SVS, NDPI, MRXS and their relatives, DICOM
series, slides and segmentations; polygons as GeoJSON from QuPath. A run that was interrupted goes on where it stopped; what
is already there, from the same files, is skipped. Files that cannot be read are listed at the end with what was seen and
what to do; then the exit code is 1, and everything else is in the cohort.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from casebook import CasebookError, Cohort
from casebook.ingest import Ingest, Note, Outcome, ingest
from casebook.table import table


@dataclass(frozen=True, kw_only=True)
class Job:
    """Turn a folder of images and of every annotator's masks into a cohort."""

    ingest: Annotated[Ingest, tyro.conf.arg(name="")]
    address: str | None = None
    """Ray cluster ('auto', 'host:6379') whose machines write the blocks; without it, threads here. Files and cohort must lie
    where all of them reach."""
    json: Path | None = None
    """Write the final table to this file."""


def main(job: Job) -> int:
    if job.address:
        from ray_blocks import connect  # a laptop does not wait for Ray to be imported

    bar = tqdm(unit="case", disable=None)

    def progress(done: float, total: int, name: str) -> None:
        bar.total, bar.n = total, done
        bar.set_description(name, refresh=True)

    try:
        outcome = ingest(job.ingest, scheduler=connect(job.address) if job.address else None, progress=progress)
    except CasebookError as error:
        bar.close()
        print(f"nothing was ingested: {error}", file=sys.stderr)
        return 2
    bar.close()
    print(report(outcome))
    if job.json:
        job.json.write_text(json.dumps(rows(outcome), indent=2))
    return 1 if outcome.failures or outcome.cohort is None else 0


def rows(outcome: Outcome) -> list[dict[str, object]]:
    """The counts, in the shape that all jobs write."""
    cases = len(outcome.cohort.cases) if outcome.cohort else 0
    values = {"cases in the cohort": cases, "cases written": outcome.written, "cases already there": outcome.skipped,
              "files not ingested": len(outcome.failures)}  # fmt: skip
    return [
        {
            "row": row,
            "value": value,
            "reference": None,
            "ratio": None,
            "unit": "count",
            "goal": 0 if row.startswith("files") else None,
        }
        for row, value in values.items()
    ]


def report(outcome: Outcome) -> str:
    """What was read, what was not, and what to do next."""
    lines = [f'read as --images "{outcome.patterns[0]}" --labels "{outcome.patterns[1]}"', ""]
    for severity, title in (("failed", "NOT INGESTED"), ("note", "worth knowing")):
        if notes := [note for note in outcome.notes if note.severity == severity]:
            lines += [
                f"{title} ({len(notes)})",
                table(("file", "what was seen", "what to do"), _grouped(notes), widest=120),
                "",
            ]
    lines.append(table(("cases", ""), [(row["row"], row["value"]) for row in rows(outcome)]))
    return "\n".join([*lines, "", *_ending(outcome.cohort)])


def _grouped(notes: list[Note]) -> list[tuple[str, str, str]]:
    """Notes that say the same, on one line."""
    files: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        files.setdefault((note.seen, note.remedy), []).append(note.file)
    return [
        (f[0] + (f" and {len(f) - 1} more" if len(f) > 1 else ""), seen, remedy) for (seen, remedy), f in files.items()
    ]


def _ending(cohort: Cohort | None) -> list[str]:
    if cohort is None:
        return ["no case could be read, no cohort was written"]
    splits = ", ".join(f"{len(cohort.split(split).cases)} {split}" for split in ("train", "validation", "test"))
    return [
        f"cohort     {cohort.url}",
        f"splits     {splits} ({len({row.group for row in cohort.cases})} groups)",
        f"annotators {', '.join(cohort.annotators)}",
        "",
        f"next: python jobs/inspect_cohort.py --cohort {cohort.url}",
        f"      python jobs/train.py --cohort {cohort.url}",
    ]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job, description=__doc__)))
