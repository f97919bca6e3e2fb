"""Which labels are wrong? Our ranking beside cleanlab's, where it is known: nuclei whose masks were corrected by others later.

    python jobs/bench_label_quality.py --source dsb2018            the images with instances_original.png and instances_fixed.png
    python jobs/bench_label_quality.py --source dsb2018 --quick    briefly trained nets, under a minute

A net is trained on all folds but one and judges that one, so that no label judges itself; both rankings get the same posteriors.
'planted': in every second image, drawn by lot, one nucleus of middling size is forgotten in the corrected labels.
"""

import csv
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from casebook import CasebookError, CaseRow, Layer, describe_case, open_case, write_case, write_cohort
from rayters.inference.predict import predict_region
from rayters.inference.tiling import Tiling
from rayters.methods import MajorityVote
from rayters.networks.backbone import UNet
from rayters.patches.sampling import Sampling
from rayters.reports.label_quality import suspect
from rayters.reports.rows import Row, rows_table, write_rows
from rayters.training.local import train_locally
from rayters.training.model import load_model
from rayters.training.run import Run

CLASSES = ("background", "nucleus")
GROSS = 0.99  # Dice of original and corrected below which a correction is one that changes a result
Labels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Average precision of two rankings of labels by how wrong they probably are."""

    source: Path  # folder with images.csv, and image.png, instances_original.png, instances_fixed.png in a folder for each image
    folder: Path | None = None  # where cohorts and nets are kept, to go on from; None: a temporary one
    folds: int = 4
    only: tuple[int, ...] = ()  # folds that are judged; none: all
    epochs: int = 12
    patches: int = 320  # per epoch
    quick: bool = False
    json: str | None = None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One image: its labels as released and as corrected, instances as corrected, and a posterior that has not seen them."""

    name: str
    corrected: bool
    dice: float
    original: Labels
    fixed: Labels
    instances: NDArray[np.int64]
    posterior: NDArray[np.float32]


def main(bench: Bench) -> None:
    """Trains, judges, prints the table."""
    folds, epochs, patches = (2, 2, 64) if bench.quick else (bench.folds, bench.epochs, bench.patches)
    root = bench.folder or Path(tempfile.mkdtemp(prefix="rayters-labels-"))
    with (bench.source / "images.csv").open() as file:
        images = [line for line in csv.DictReader(file) if (bench.source / line["folder"]).is_dir()]
    judged: list[Judged] = []
    for fold in tqdm(bench.only or range(folds), desc="fold"):
        judged += _fold(bench.source, images, root / f"{folds}-{epochs}-{patches}", fold, folds, epochs, patches)
    rows = table(judged)
    print(f"\n{rows_table(rows)}")
    if bench.json:
        write_rows(rows, bench.json)


def _fold(
    source: Path, images: list[dict[str, str]], root: Path, fold: int, folds: int, epochs: int, patches: int
) -> list[Judged]:
    """Images of one fold, judged by a net that was trained on the others, as they were released."""
    place = root / f"fold{fold}"
    mine = [line for index, line in enumerate(images) if index % folds == fold]
    if not (place / "run.json").is_file():
        rows: list[CaseRow] = []
        for index, line in enumerate(images):
            if index % folds == fold:
                continue
            split = "validation" if index // folds % 8 == 0 else "train"
            rows.append(_case(source / line["folder"], place / f"cases/{line['folder']}.ome.zarr", split))
        cohort = write_cohort(place, rows, name="dsb2018", classes=CLASSES)
        run = Run(
            method=MajorityVote(),
            network=UNet(width=8, levels=4),
            patch_px=(128, 128),
            epochs=epochs,
            sampling=Sampling(patches_per_epoch=patches),
        )
        train_locally(run, cohort, place)
    model = load_model(place)
    found = []
    for line in mine:
        folder = source / line["folder"]
        row = _case(folder, place / f"cases/{line['folder']}.ome.zarr", "test")
        seen = predict_region(model, open_case(row.url), tiling=Tiling(overlap=0.5, flips=True))
        fixed = folder / "instances_fixed.png"  # not there where the labels were so bad that the image was given up
        instances = np.asarray(Image.open(fixed if fixed.is_file() else folder / "instances_original.png")).astype(
            np.int64
        )
        found.append(
            Judged(
                name=line["folder"],
                corrected=line["status"] != "unchanged",
                dice=float(line["foreground_dice_original_fixed"] or 0) if fixed.is_file() else 0.0,
                original=_mask(folder / "instances_original.png"),
                fixed=(instances > 0).astype(np.uint8),
                instances=instances,
                posterior=seen.posterior,
            )
        )
    return found


def _case(folder: Path, url: Path, split: str) -> CaseRow:
    image = np.moveaxis(np.asarray(Image.open(folder / "image.png").convert("RGB")), -1, 0)
    layers = {Layer(id="released"): _mask(folder / "instances_original.png")}
    case = write_case(url, image, spacing_um=(1.0, 1.0), classes=CLASSES, layers=layers, existing="replace")
    return describe_case(case, split=split, group=folder.name)


def _mask(path: Path) -> Labels:
    return (np.asarray(Image.open(path)) > 0).astype(np.uint8)


def ours(posterior: NDArray[np.float32], labels: Labels) -> float:
    """Higher is more suspicious."""
    return suspect(posterior, labels).score


def cleanlab(posterior: NDArray[np.float32], labels: Labels) -> float:
    """The same way round; the score that its authors recommend, at full resolution."""
    from cleanlab.segmentation.rank import get_label_quality_scores

    scores, _ = get_label_quality_scores(
        labels[None].astype(np.int64), posterior[None], method="softmin", downsample=1, verbose=False
    )
    return 1 - float(scores[0])


def table(judged: list[Judged]) -> list[Row]:
    """Average precision by what counts as wrong."""
    released = [each.original for each in judged]
    rows = [
        _row("any correction", judged, released, [each.corrected for each in judged]),
        _row("gross correction", judged, released, [each.corrected and each.dice < GROSS for each in judged]),
    ]
    kept = [each for each in judged if each.dice > 0]
    for lot in range(5):
        labels, wrong = _planted(kept, lot)
        rows.append(_row(f"planted, lot {lot}", kept, labels, wrong))
    return [*rows[:2], _mean(rows[2:])]


def _row(name: str, judged: list[Judged], labels: list[Labels], wrong: list[bool]) -> Row:
    def precision(score: Callable[[NDArray[np.float32], Labels], float]) -> float:
        scores = [score(each.posterior, drawn) for each, drawn in zip(judged, labels, strict=True)]
        return float(average_precision_score(wrong, scores))

    share = f"{sum(wrong)} of {len(wrong)} images"
    return Row(
        row=f"label QA / cleanlab soft-min, average precision, {name} ({share})",
        value=precision(ours),
        reference=precision(cleanlab),
        goal="> 1",
    )


def _mean(rows: list[Row]) -> Row:
    value, reference = np.mean([row.value for row in rows]), np.mean([row.reference or 0 for row in rows])
    name = rows[0].row.replace("planted, lot 0", "planted, mean of 5 lots")
    return Row(row=name, value=float(value), reference=float(reference), goal="> 1")


def _planted(judged: list[Judged], lot: int) -> tuple[list[Labels], list[bool]]:
    """The corrected labels, and in every second image one nucleus forgotten, neither of the smallest nor of the largest quarter."""
    rng = np.random.default_rng(lot)
    chosen = np.zeros(len(judged), bool)
    chosen[rng.permutation(len(judged))[: len(judged) // 2]] = True
    labels, wrong = [], []
    for each, forget in zip(judged, chosen, strict=True):
        drawn = each.fixed.copy()
        sizes = ndimage.sum_labels(np.ones_like(each.instances), each.instances, np.arange(1, each.instances.max() + 1))
        ranked = np.argsort(sizes)[np.sort(sizes) > 0] if sizes.size else np.zeros(0, int)
        forget = bool(forget and len(ranked) > 1)
        if forget:
            middle = ranked[len(ranked) // 4 : max(len(ranked) // 4 + 1, 3 * len(ranked) // 4)]
            drawn[each.instances == int(rng.choice(middle)) + 1] = 0
        labels.append(drawn)
        wrong.append(forget)
    return labels, wrong


if __name__ == "__main__":
    try:
        main(tyro.cli(Bench, description=__doc__))
    except (CasebookError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
