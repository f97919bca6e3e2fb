"""What is in a cohort: its cases, who drew what, how well they agree, and which pairs a person should look at.

    python jobs/inspect_cohort.py --cohort cohorts/chase
    python jobs/inspect_cohort.py --cohort s3://bucket/slides --split train --pictures inspect/ --json inspect.json

Agreement is measured on the finest level of at most 4 megapixels. Pictures (with --pictures): one page of cases with everyone's
outlines, and the matrices of pairwise Dice and Cohen's kappa.
"""

import json
import math
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from casebook import IGNORE, Case, CasebookError, Cohort, open_case, open_cohort
from casebook.table import table
from rayters.annotators.agreement import cohen_kappa, fleiss_kappa, pair_counts, pairwise_dice, suspicious_pairs

MOST_PIXELS = 2**22
COLOURS = ("#e64b35", "#4dbbd5", "#00a087", "#f39b7f", "#3c5488", "#91d1c2", "#dc0000", "#7e6148", "#b09c85", "#8491b4")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is in a cohort, who agrees with whom, and what looks wrong."""

    cohort: str
    """URL of the cohort: a folder, s3://bucket/name ..."""
    split: Literal["all", "train", "validation", "test"] = "all"
    """Which cases."""
    pictures: Path | None = None
    """Folder for the pictures; none are made without it."""
    shown: int = 6
    """Cases in the picture: the ones with most disagreement."""
    json: Path | None = None
    """Write the tables to this file."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What was measured: counts (A, A, K, K) over all cases, Fleiss' kappa per case, suspicions (case, pair, dice, why)."""

    counts: NDArray[np.int64]
    fleiss: dict[str, float]
    drew: dict[str, int]
    suspicious: tuple[tuple[str, str, float, str], ...]
    failed: tuple[tuple[str, str], ...]


def look(cohort: Cohort) -> Looked:
    """Reads every case once, on a coarse level."""
    classes, people = len(cohort.classes), cohort.annotators
    counts = np.zeros((len(people), len(people), classes, classes), np.int64)
    fleiss: dict[str, float] = {}
    drew = dict.fromkeys(people, 0)
    suspicious: list[tuple[str, str, float, str]] = []
    failed: list[tuple[str, str]] = []
    for row in tqdm(cohort.cases, unit="case", disable=None):
        try:
            layers = layers_of(open_case(row.url), people)
        except CasebookError as error:
            failed.append((row.case, str(error)))
            continue
        here = pair_counts(layers, classes=classes)
        counts += here
        fleiss[row.case] = fleiss_kappa(layers, classes=classes)
        for index, who in enumerate(people):
            drew[who] += bool((layers[index] != IGNORE).any())
        suspicious += [(row.case, *found) for found in suspicions(layers, here, people)]
    return Looked(counts=counts, fleiss=fleiss, drew=drew, suspicious=tuple(suspicious), failed=tuple(failed))


def layers_of(case: Case, people: tuple[str, ...]) -> NDArray[np.uint8]:
    """(A, *S) on the finest level that is small enough."""
    level = coarse_level(case)
    return case.read_labels(people, level, (0,) * len(case.axes), case.shapes[level])


def coarse_level(case: Case) -> int:
    return next((k for k, s in enumerate(case.shapes) if math.prod(s) <= MOST_PIXELS), len(case.shapes) - 1)


def suspicions(
    layers: NDArray[np.uint8], counts: NDArray[np.int64], people: tuple[str, ...]
) -> list[tuple[str, float, str]]:
    """(pair, Dice, why) of what a person should look at in one case."""
    found = [(f"{people[s.pair[0]]} - {people[s.pair[1]]}", s.dice, s.reason) for s in suspicious_pairs(counts)]
    known = {pair for pair, *_ in found}
    for a, b in combinations(range(len(people)), 2):
        shift, before, after = best_shift(layers[a], layers[b])
        if after > before + 0.2 and f"{people[a]} - {people[b]}" not in known:
            found.append(
                (
                    f"{people[a]} - {people[b]}",
                    before,
                    f"displaced: moved by {shift} px their Dice would be {after:.2f}",
                )
            )
    return found


def best_shift(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[tuple[int, ...], float, float]:
    """The shift of b that overlaps a best, and the Dice of the foregrounds before and after; by circular correlation."""
    first, second = ((x > 0) & (x != IGNORE) for x in (a, b))
    total = int(first.sum() + second.sum())
    if not first.any() or not second.any():
        return (0,) * a.ndim, 1.0, 1.0
    overlap = np.fft.irfftn(
        np.fft.rfftn(first.astype(np.float32)) * np.conj(np.fft.rfftn(second.astype(np.float32))), s=a.shape
    )
    peak = np.unravel_index(int(overlap.argmax()), a.shape)
    shift = tuple(int(p if p <= n // 2 else p - n) for p, n in zip(peak, a.shape, strict=True))
    return shift, 2 * int((first & second).sum()) / total, 2 * float(overlap.max()) / total


def report(cohort: Cohort, looked: Looked) -> str:
    people = cohort.annotators
    dice, kappa = pairwise_dice(looked.counts), cohen_kappa(looked.counts)
    cases = [
        (r.case, r.split, r.group, " x ".join(map(str, r.shape)), f"{r.spacing_um[-1]:.4g}", r.channels, r.dtype, len(r.annotators),
         _share(r.foreground[1:], r.shape), f"{looked.fleiss.get(r.case, math.nan):.2f}")
        for r in cohort.cases
    ]  # fmt: skip
    who = [
        (p, looked.drew[p], f"{np.nanmean(np.delete(dice[i], i)):.3f}" if len(people) > 1 else "-")
        for i, p in enumerate(people)
    ]
    pairs = [
        (people[a], people[b], f"{dice[a, b]:.3f}", f"{kappa[a, b]:.3f}")
        for a, b in combinations(range(len(people)), 2)
    ]
    lines = [
        about(cohort),
        "",
        table(
            ("case", "split", "group", "pixels", "um", "c", "dtype", "annotators", "foreground", "Fleiss"), cases[:40]
        ),
    ]
    lines += [f"... and {len(cases) - 40} more cases"] if len(cases) > 40 else []
    lines += [
        "",
        table(("annotator", "cases", "mean Dice with the others"), who),
        "",
        table(("annotator", "and", "Dice", "Cohen kappa"), pairs),
    ]
    lines += ["", f"to look at ({len(looked.suspicious)})"]
    lines.append(
        table(
            ("case", "pair", "Dice", "why"),
            [(c, p, f"{d:.2f}", w) for c, p, d, w in looked.suspicious[:30]],
            widest=110,
        )
    )
    if looked.failed:
        lines += ["", f"UNREADABLE ({len(looked.failed)})", table(("case", "why"), looked.failed, widest=140)]
    return "\n".join(lines)


def _share(foreground: tuple[tuple[int, ...], ...], shape: tuple[int, ...]) -> str:
    return f"{100 * sum(map(sum, foreground)) / math.prod(shape):.1f} %"


def about(cohort: Cohort) -> str:
    splits = ", ".join(f"{len(cohort.split(s).cases)} {s}" for s in ("train", "validation", "test"))
    identity = "the same person in every case" if cohort.stable_annotators else "NOT the same person in every case"
    return "\n".join(
        (
            f"cohort {cohort.name!r} at {cohort.url}",
            f"cases      {len(cohort.cases)} ({splits}), {len({r.group for r in cohort.cases})} groups",
            f"classes    {', '.join(f'{k} {name}' for k, name in enumerate(cohort.classes))}; {IGNORE} IGNORE",
            f"annotators {', '.join(cohort.annotators)} ({identity}); reference {cohort.reference or 'none'}",
            f"licence    {cohort.licence or 'not stated'}",
        )
    )


def rows(cohort: Cohort, looked: Looked) -> list[dict[str, Any]]:
    """The tables, in the shape that all jobs write."""
    dice, kappa = pairwise_dice(looked.counts), cohen_kappa(looked.counts)
    values: list[tuple[str, float, str]] = [
        ("cases", len(cohort.cases), "count"),
        ("suspicious pairs", len(looked.suspicious), "count"),
    ]
    values.append(("Fleiss kappa, mean over cases", float(np.nanmean([*looked.fleiss.values(), math.nan])), "kappa"))
    for a, b in combinations(range(len(cohort.annotators)), 2):
        pair = f"{cohort.annotators[a]} - {cohort.annotators[b]}"
        values += [(f"Dice {pair}", float(dice[a, b]), "Dice"), (f"Cohen {pair}", float(kappa[a, b]), "kappa")]
    return [
        {"row": r, "value": None if math.isnan(v) else v, "reference": None, "ratio": None, "unit": u, "goal": None}
        for r, v, u in values
    ]


def draw(cohort: Cohort, looked: Looked, folder: Path, shown: int) -> list[Path]:
    """The two pictures."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = sorted(cohort.cases, key=lambda r: -sum(r.disagreement) / math.prod(r.shape))[:shown]
    return [draw_cases(cohort, chosen, folder / "cases.png"), draw_agreement(cohort, looked, folder / "agreement.png")]


def draw_cases(cohort: Cohort, chosen: list[Any], path: Path) -> Path:
    """The cases with most disagreement: the picture, everyone's outlines on it, and how many marked each pixel."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    figure, axes = plt.subplots(len(chosen), 3, figsize=(11, 3.5 * len(chosen)), squeeze=False, layout="constrained")
    for line, row in zip(axes, chosen, strict=True):
        case = open_case(row.url)
        picture, layers = flat_view(case, cohort.annotators)
        marked = ((layers > 0) & (layers != IGNORE)).sum(0)
        for ax in line[:2]:
            ax.imshow(picture, cmap="gray")
        for index, layer in enumerate(layers):
            mask = (layer > 0) & (layer != IGNORE)
            if mask.any() and not mask.all():
                line[1].contour(mask, [0.5], colors=[COLOURS[index % len(COLOURS)]], linewidths=1)
        shade = line[2].imshow(marked, cmap="magma", vmin=0, vmax=max(1, (layers != IGNORE).any(axis=(1, 2)).sum()))
        figure.colorbar(shade, ax=line[2], label="annotators who marked it", shrink=0.8)
        line[0].set_title(f"{row.case} ({row.split})", fontsize=9)
        line[1].set_title(f"outlines of {len(row.annotators)} annotators", fontsize=9)
    for ax in axes.ravel():
        ax.set_axis_off()
    lines = [Line2D([], [], color=COLOURS[i % len(COLOURS)], label=who) for i, who in enumerate(cohort.annotators)]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(6, len(lines)), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def flat_view(case: Case, people: tuple[str, ...]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """A picture (Y, X[, 3]) in 0..1 and the layers (A, Y, X) beside it; of a volume the slice where most was marked."""
    level = next((k for k, s in enumerate(case.shapes) if max(s) <= 1024), len(case.shapes) - 1)
    origin, size = (0,) * len(case.axes), case.shapes[level]
    image, layers = (
        case.read_image(level, origin, size).astype(np.float32),
        case.read_labels(people, level, origin, size),
    )
    if len(case.axes) == 3:
        most = int(((layers > 0) & (layers != IGNORE)).sum(axis=(0, 2, 3)).argmax())
        image, layers = image[:, most], layers[:, most]
    low, high = np.percentile(image, (0.5, 99.5))
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    return (np.moveaxis(scaled, 0, -1) if len(image) == 3 else scaled[0]), layers


def draw_agreement(cohort: Cohort, looked: Looked, path: Path) -> Path:
    """Everyone against everyone."""
    import matplotlib.pyplot as plt

    size = 2.5 + 0.45 * len(cohort.annotators)
    figure, axes = plt.subplots(1, 2, figsize=(2.2 * size, size), layout="constrained")
    for ax, values, title in zip(
        axes, (pairwise_dice(looked.counts), cohen_kappa(looked.counts)), ("Dice", "Cohen's kappa"), strict=True
    ):
        shade = ax.imshow(values, cmap="viridis", vmin=0, vmax=1)
        ax.set_xticks(range(len(values)), cohort.annotators, rotation=90, fontsize=8)
        ax.set_yticks(range(len(values)), cohort.annotators, fontsize=8)
        ax.set_title(title)
        for a, b in np.ndindex(values.shape):
            if np.isfinite(values[a, b]):
                ax.text(
                    b,
                    a,
                    f"{values[a, b]:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="black" if values[a, b] > 0.6 else "white",
                )
    figure.colorbar(shade, ax=axes, shrink=0.7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def main(job: Job) -> int:
    try:
        cohort = open_cohort(job.cohort)
    except CasebookError as error:
        print(error, file=sys.stderr)
        return 2
    cohort = cohort if job.split == "all" else cohort.split(job.split)
    looked = look(cohort)
    print(report(cohort, looked))
    if job.json:
        job.json.write_text(json.dumps(rows(cohort, looked), indent=2))
    if job.pictures:
        print("\n" + "\n".join(f"picture {path}" for path in draw(cohort, looked, job.pictures, job.shown)))
    return 1 if looked.failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Job, description=__doc__)))
