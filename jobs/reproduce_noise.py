"""Soft labels and effective supervision on real annotators with noise on top: jobs/reproduce.py cells, lidc, vessels.

    cells      BU-BIL d4, one fluorescent cell a picture, seven drawings by a crowd; measured against the majority of three experts
    lidc       LIDC-IDRI, lung nodules in CT, four readers; measured against their vote, before any noise
    vessels    CHASE_DB1, vessels of the retina, two observers; measured against what both drew, before any noise

Felfeliyan et al. 2022 and Shi & Wu 2021 published neither code nor all figures; the settings are ours:

    soft, soft biased    every drawing is spoilt with probability one half: Li et al.'s superpixel-guided noise, 70 % of the foreground
                         changed; biased: always grown
    0 %                  one drawing per picture, nothing spoilt: what there is to win back
    30 %, 50 %, 70 %     one drawing per picture, of one of its annotators at random; so many of each split's drawings are spoilt
    50 % biased          likewise, always grown
    50 % wandering       likewise, by Yao et al.'s Markov process along the boundary, outwards more often than inwards

Every seed of the training has its own seed of the noise. Methods that want the share of noisy pictures are told the true one,
co-teaching as well as effective supervision; both have two networks, and so has one of the rows of cross-entropy.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from casebook import (
    Case,
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
from casebook.ingest import Ingest, ingest
from rayters.annotators.fuse import majority_vote
from rayters.annotators.noise import MarkovBoundary, Noise, SuperpixelGuided
from rayters.methods import CoTeaching, EffectiveSupervision, MajorityVote, Method, OneAnnotator, SoftLabels
from rayters.metrics.calibration import calibration
from rayters.networks.backbone import UNet
from rayters.patches.sampling import Sampling
from rayters.reports.rows import Row
from rayters.training.run import Run, to_json
from rayters.tuning.sweep import Report
from reproduce_pairs import Measured, Pair
from reproduce_study import Measure, Study, scores, summary, train_and_test

Labels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """share: of drawings (all: of all annotators', each for itself) or of pictures (one drawing each) that are spoilt."""

    share: float
    noise: Noise
    all: bool = False


EVERY_WAY, GROWN = SuperpixelGuided(share=0.7), SuperpixelGuided(share=0.7, bias="grow")
SETTINGS: Mapping[str, Setting] = {
    "soft": Setting(share=0.5, noise=EVERY_WAY, all=True),
    "soft biased": Setting(share=0.5, noise=GROWN, all=True),
    "0 %": Setting(share=0.0, noise=EVERY_WAY),
    "30 %": Setting(share=0.3, noise=EVERY_WAY),
    "50 %": Setting(share=0.5, noise=EVERY_WAY),
    "70 %": Setting(share=0.7, noise=EVERY_WAY),
    "50 % biased": Setting(share=0.5, noise=GROWN),
    "50 % wandering": Setting(share=0.5, noise=MarkovBoundary(expand=0.7)),
}
CEILING = "ceiling"  # the key of the row that learns from the reference
HARD: Mapping[str, tuple[str, Method]] = {
    CEILING: ("BCE and soft Dice, the reference itself (ceiling)", MajorityVote()),
    "bce_one": ("BCE, one annotator", OneAnnotator()),
    "bce_vote": ("BCE, vote", MajorityVote(dice=0)),
    "dice_vote": ("BCE and soft Dice, vote", MajorityVote()),
    "soft": ("soft labels, NCE + RCE", SoftLabels()),
    "soft_proper": ("soft labels, NFL + MAE, proper", SoftLabels(loss_name="nfl+mae", variant="proper")),
}
NOISY: Mapping[str, tuple[str, Method]] = {
    "ce": ("cross-entropy", MajorityVote(dice=0)),
    "ce_two": ("cross-entropy, two networks", CoTeaching(level="patch", noisy_share=0)),
    "co_teaching": ("co-teaching", CoTeaching(level="patch")),
    "supervision": ("effective supervision", EffectiveSupervision()),
    "supervision_balanced": ("effective supervision, classes balanced", EffectiveSupervision(reuse_balance="peer")),
}
# how many pictures are spoilt; the two networks of cross-entropy doubt none
TOLD = ("co_teaching", "supervision", "supervision_balanced")
TITLES = {key: title for key, (title, _) in {**HARD, **NOISY}.items()}


@dataclass(frozen=True, kw_only=True)
class Noisy(Study):
    """Real annotators, and noise on top."""

    only: tuple[str, ...] = tuple(TITLES)  # rows, by key
    settings: tuple[str, ...] = tuple(SETTINGS)
    source: str = ""
    tile_px: tuple[int, ...] = ()
    epochs: int = 12
    patches: int = 1000  # an epoch's; with a fifth not even clean labels are learnt, and noise costs nothing
    balance: Literal["uniform", "class"] = "uniform"
    width: int = 8
    noise_seed: int = 0  # of the training with seed 0; the others' follow

    def options(self) -> dict[str, Any]:
        """How the source is ingested."""
        raise NotImplementedError

    def hurried(self) -> "Noisy":
        return replace(self, epochs=1, patches=32, width=4, seeds=1)

    def trials(self) -> list[dict[str, Any]]:
        sizes = {"epochs": self.epochs, "patches": self.patches, "width": self.width, "balance": self.balance}
        return [
            {
                "row": row,
                "setting": setting,
                "seed": seed,
                "noise": self.noise_seed + seed,
                "tile_px": list(self.tile_px),
            }
            | sizes
            | {"method": to_json({**HARD, **NOISY}[row][1]), "spoilt": repr(SETTINGS[setting])}
            for setting in self.settings
            for row in (HARD if SETTINGS[setting].all else NOISY)
            if row in self.only
            for seed in range(self.seeds)
        ]

    def data(self) -> dict[str, Cohort]:
        """One cohort for each setting and seed of the noise; the validation's drawings are as noisy as the training's."""
        root = Path(self.storage).absolute()
        ingest(Ingest(source=self.source, to=str(root / "clean"), name=root.name, **self.options()))
        clean = open_cohort(str(root / "clean"))
        return {
            data_key(name, seed): spoilt(clean, root / data_key(name, seed), SETTINGS[name], seed=seed)
            for name in self.settings
            for seed in range(self.noise_seed, self.noise_seed + self.seeds)
        }

    @property
    def measure(self) -> Measure:
        return measure

    def lines(self, measured: Sequence[Measured]) -> list[dict[str, Any]]:
        return summary(measured, TITLES)

    def pairs(self) -> list[Pair]:
        return [
            Pair(setting=setting, ours=ours, peer=peer) for setting in self.settings for ours, peer, _ in asked(setting)
        ]

    def rows(self, lines: Sequence[dict[str, Any]]) -> list[Row]:
        return goal_rows({(line["setting"], line["key"]): line["dice"] for line in lines})

    def about(self) -> dict[str, Any]:
        size = f"{self.epochs} epochs of {self.patches} patches of {self.tile_px} px, U-Net of width {self.width}"
        return {"experiment": f"{type(self).__name__}: real annotators with noise on top", "protocol": size}


@dataclass(frozen=True, kw_only=True)
class Cells(Noisy):
    """Felfeliyan et al. 2022, Shi & Wu 2021: soft labels and effective supervision, on a crowd's drawings of cells."""

    source: str = "../shared/data/bubil/d4"
    tile_px: tuple[int, ...] = (44, 44)  # the smallest picture has 45 px
    storage: str = "rayters-runs/reproduce-cells"

    def options(self) -> dict[str, Any]:
        return {"skip": ("expert_*",), "reference": "gold", "empty": "ignore", "identities": "anonymous"}


@dataclass(frozen=True, kw_only=True)
class Lidc(Noisy):
    """The same on four radiologists' drawings of lung nodules; hours on two cores."""

    source: str = "../shared/data/lidc"
    tile_px: tuple[int, ...] = (1, 64, 64)  # slices lie millimetres apart
    balance: Literal["uniform", "class"] = "class"  # a nodule has .01 of its slice: BCE would see none
    storage: str = "rayters-runs/reproduce-lidc"

    def options(self) -> dict[str, Any]:
        return {"group": r"LIDC-IDRI-\d+", "empty": "ignore", "identities": "anonymous"}


@dataclass(frozen=True, kw_only=True)
class Vessels(Noisy):
    """The same on two observers' drawings of the vessels of the retina; hours on two cores."""

    source: str = "../shared/data/chase"
    tile_px: tuple[int, ...] = (64, 64)
    storage: str = "rayters-runs/reproduce-vessels"

    def options(self) -> dict[str, Any]:
        return {"group": r"(\d+)[LR]", "classes": ("background", "vessel")}


def asked(setting: str) -> list[tuple[str, str, str]]:
    """Which rows are compared, (ours, its peer, the goal of their ratio)."""
    if not SETTINGS[setting].all:
        peers = [("ce", "> 1"), ("ce_two", ""), ("co_teaching", ">= 1")]
        return [(ours, peer, goal) for ours in ("supervision", "supervision_balanced") for peer, goal in peers]
    peers = [("bce_one", ">= 1.08"), ("bce_vote", ""), ("dice_vote", "")]
    return [(ours, peer, goal) for ours in ("soft", "soft_proper") for peer, goal in peers]


def data_key(setting: str, seed: int) -> str:
    """The name of a cohort: its setting, what is done to its drawings, the seed of the noise."""
    return f"{setting}-{zlib.crc32(repr(SETTINGS[setting]).encode()):08x}-{seed}"


def goal_rows(dice: Mapping[tuple[str, str], float]) -> list[Row]:
    """The figures that have a goal."""
    rows = []
    for setting, noise in SETTINGS.items():
        if not noise.share:
            continue
        for ours, peer, goal in asked(setting):
            if (setting, ours) in dice and (setting, peer) in dice:
                name = f"{TITLES[ours]} / {TITLES[peer]}, {setting}, Dice"
                rows.append(Row(row=name, value=dice[setting, ours], reference=dice[setting, peer], goal=goal))
    return rows


def spoilt(clean: Cohort, to: Path, setting: Setting, *, seed: int) -> Cohort:
    """The cohort with noise on top of training and validation drawings, made if it is not there."""
    try:
        return open_cohort(str(to))
    except CaseNotFoundError:
        wrong_cases = _drawn_lots(clean, setting, seed)
    names = clean.annotators if setting.all else ("drawing",)
    rows: list[CaseRow] = []
    for number, row in enumerate(clean.cases):
        case, rng = open_case(row.url), np.random.default_rng([seed, 1, number])
        drawn = _read(case, *clean.annotators)
        kept = drawn if setting.all else drawn[[int(rng.choice(_drawn(drawn)))]]
        wrong = rng.random(len(kept)) < setting.share if setting.all else [row.case in wrong_cases]
        layers = {
            Layer(id=name): setting.noise.draw(labels, rng) if spoil else labels
            for name, labels, spoil in zip(names, kept, wrong, strict=True)
        }
        gold = _read(case, clean.reference)[0] if clean.reference else majority_vote(drawn, classes=len(clean.classes))
        layers |= {Layer(id="gold", role="reference"): gold}
        url, shape = f"{to}/{row.case}.ome.zarr", case.shapes[0]
        write_case(
            url,
            case.read_image(0, (0,) * len(shape), shape),
            spacing_um=case.spacing_um[0],
            classes=clean.classes,
            layers=layers,
            existing="replace",
        )
        rows.append(describe_case(open_case(url), split=row.split, group=row.group))
    return write_cohort(str(to), rows, name=to.name, classes=clean.classes, annotators=names, reference="gold")


def _drawn_lots(clean: Cohort, setting: Setting, seed: int) -> set[str]:
    """The cases with a spoilt drawing: the same share of each split."""
    rng, wrong = np.random.default_rng([seed, 0]), set()
    for split in sorted({row.split for row in clean.cases}):
        cases = [row.case for row in clean.cases if row.split == split]
        wrong |= set(rng.permutation(cases)[: round(setting.share * len(cases))].tolist())
    return wrong


def _read(case: Case, *layers: str) -> Labels:
    return case.read_labels(layers, 0, (0,) * len(case.shapes[0]), case.shapes[0])


def _drawn(layers: Labels) -> NDArray[np.int64]:
    """Which layers somebody drew anything on."""
    return np.flatnonzero([(layer == 1).any() for layer in layers])


def measure(trial: Mapping[str, Any], cohorts: Mapping[str, Cohort], report: Report) -> dict[str, Any]:
    """One training from one seed against the reference of the test cases: {"dice", "patients", "ece", "brier", "nll"}."""
    cohort, setting = cohorts[data_key(trial["setting"], trial["noise"])], SETTINGS[trial["setting"]]
    cohort = _from_the_reference(cohort) if trial["row"] == CEILING else cohort
    run = Run(
        method=method_of(trial["row"], setting.share),
        network=UNet(width=trial["width"]),
        patch_px=tuple(trial["tile_px"]),
        epochs=trial["epochs"],
        sampling=Sampling(patches_per_epoch=trial["patches"], balance=trial["balance"]),
        seed=trial["seed"],
        restarts=0,
        force=True,  # a slot of the crowd is taken for a person by the row of one annotator
    )
    tested = list(train_and_test(run, cohort))
    parts = [calibration(seen.posterior, gold) for _, seen, gold in tested]
    whole = sum(parts[1:], parts[0])
    return scores(tested) | {"ece": whole.ece, "brier": whole.brier, "nll": whole.nll}


def method_of(row: str, share: float) -> Method:
    """A row's method, told which share of the pictures is spoilt if it is one that is."""
    method = {**HARD, **NOISY}[row][1]
    if row in TOLD and isinstance(method, CoTeaching | EffectiveSupervision):
        return replace(method, noisy_share=share)
    return method


def _from_the_reference(cohort: Cohort) -> Cohort:
    """The same cases with the reference for an annotator."""
    only = (str(cohort.reference),)
    return replace(cohort, annotators=only, cases=tuple(replace(row, annotators=only) for row in cohort.cases))
