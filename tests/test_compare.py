"""The comparison: what its figures may claim, who is told to look where, and what the page says."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casebook import IGNORE, CaseRow, Cohort, Layer, describe_case, write_case, write_cohort
from rayters.annotators.digits import digit_sheets
from rayters.inference.tiling import Tiling
from rayters.inference.weights import pack
from rayters.inference.whole import see_case, see_cohort
from rayters.inference.work import plan_work, predict_here
from rayters.inference.writing import Output
from rayters.methods import AnnotatorConfusion, Prediction
from rayters.networks.backbone import UNet
from rayters.networks.task import Task
from rayters.patches.sampling import Sampling
from rayters.reports.annotators import ranking
from rayters.reports.assessment import Assessment, assess
from rayters.reports.label_quality import suspect
from rayters.reports.page import html, markdown
from rayters.reports.predicted import Predicted, on_grid, parse
from rayters.reports.statistics import by_group, compare_pairs, holm, interval, rank_stability
from rayters.reports.study import Study, add_pictures, make_study
from rayters.reports.training import Contender, contest_rows, methods_table
from rayters.training.local import train_locally
from rayters.training.model import Model
from rayters.training.run import Run

ROOT = Path(__file__).parents[1]
SPLITS = ("train", "train", "train", "validation", "test", "test")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Sheets of digits by five annotators and a reference; predicted by a briefly trained model, beside a layer that is perfect and one
    that shies away from half of the cases."""
    folder = tmp_path_factory.mktemp("digits")
    drawn = digit_sheets(sheets=6, rows=2, columns=2)
    rows: list[CaseRow] = []
    for index in range(6):
        layers = {Layer(id=name): drawn.labels[index, a] for a, name in enumerate(drawn.annotators)}
        layers[Layer(id="reference", role="reference")] = drawn.reference[index]
        layers[Layer(id="perfect", role="fusion")] = drawn.reference[index]
        layers[Layer(id="timid", role="fusion")] = drawn.reference[index] * np.uint8(
            index % 2
        )  # draws nothing on every other
        url = f"{folder}/cases/s{index}.ome.zarr"
        case = write_case(url, drawn.images[index], spacing_um=(1.0, 1.0), classes=drawn.classes, layers=layers)
        rows.append(describe_case(case, split=SPLITS[index], group=f"p{index}"))
    cohort = write_cohort(
        folder, rows, name="digits", classes=drawn.classes, annotators=drawn.annotators, reference="reference"
    )
    run = Run(
        method=AnnotatorConfusion(level="global"), network=UNet(width=4), patch_px=(16, 16), epochs=4, batch_size=4,
        sampling=Sampling(patches_per_epoch=64, patches_per_block=8),
    )  # fmt: skip
    train_locally(run, cohort, folder / "model")
    packed = pack((str(folder / "model"),))
    work = plan_work(packed, cohort, tiling=Tiling(), output=Output())
    assert {done.state for done in predict_here(packed, cohort, work)} == {"predicted"}
    return cohort


@pytest.fixture(scope="module")
def study(digits: Cohort) -> Study:
    models = [parse("rayters"), parse("perfect")]
    made = make_study(digits, models, tolerance_um=None)
    add_pictures(made, models, most=4, gallery=3)
    return made


def test_a_group_counts_once_however_many_cases_it_has() -> None:
    assert by_group([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]) == {"a": 1.0, "b": 0.0}
    assert interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]).mean == 0.5


def test_an_interval_covers_the_true_mean_nineteen_times_in_twenty() -> None:
    rng, groups = np.random.default_rng(0), [str(i) for i in range(30)]
    found = [interval(rng.normal(0.7, 0.1, 30).tolist(), groups, draws=300) for _ in range(200)]
    assert 0.89 < np.mean([each.low <= 0.7 <= each.high for each in found]) <= 1.0


def test_one_group_has_a_mean_and_no_interval() -> None:
    found = interval([0.5], ["a"])
    assert found.mean == 0.5
    assert np.isnan(found.low)
    assert str(found) == "0.500"


def test_infinite_distances_do_not_make_a_mean_infinite() -> None:
    assert interval([1.0, np.inf], ["a", "b"]).mean == 1.0


def test_p_values_are_those_of_scipy_corrected_by_holm() -> None:
    from scipy.stats import wilcoxon

    values = {f"g{i}": i / 10 for i in range(1, 9)}
    table = {"a": values, "b": dict.fromkeys(values, 0.0), "c": dict.fromkeys(values, 0.0)}
    pairs = {(each.first, each.second): each for each in compare_pairs(table)}
    alone = wilcoxon(list(values.values())).pvalue
    assert pairs["a", "b"].p == pytest.approx(3 * alone)
    assert pairs["a", "b"].wins == 8
    assert pairs["b", "c"].p == 1
    assert holm([0.01, float("nan"), 0.5])[::2] == [0.02, 0.5]


def test_a_contender_that_wins_everywhere_comes_first_in_every_resample() -> None:
    better = {f"g{i}": 0.9 + i / 1000 for i in range(5)}
    worse = {f"g{i}": 0.1 + i / 1000 for i in range(5)}
    found = rank_stability({"a": worse, "b": better}, higher_is_better=True)
    assert found.first == {"a": 0.0, "b": 1.0}
    assert found.tau == pytest.approx(1)
    assert rank_stability({"a": worse, "b": better}, higher_is_better=False).first["a"] == 1.0


def sure_of(truth: np.ndarray) -> np.ndarray:
    """(2, *S) a posterior that is 95 % sure of a truth."""
    return np.where(truth == np.arange(2).reshape(2, *(1,) * truth.ndim), 0.95, 0.05)


def disc(y: int, x: int, radius: int, shape: tuple[int, int] = (80, 80)) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.uint8)


def test_a_forgotten_object_is_more_suspicious_than_every_outline_drawn_a_pixel_wide() -> None:
    truth = disc(20, 20, 9) | disc(60, 60, 9)
    wide = disc(20, 20, 10) | disc(60, 60, 10)
    forgotten = disc(20, 20, 9)
    assert not suspect(sure_of(truth), truth).regions
    assert not suspect(sure_of(truth), wide).regions
    found = suspect(sure_of(truth), forgotten)
    assert found.score > 0.8 > 0.2 > suspect(sure_of(truth), wide).score > suspect(sure_of(truth), truth).score
    assert (found.regions[0].low, found.regions[0].high) == ((51, 51), (70, 70))
    assert (found.regions[0].written, found.regions[0].seen) == (0, 1)


def test_an_unsure_model_accuses_nobody_and_unseen_pixels_are_nobodys_fault() -> None:
    truth = disc(20, 20, 9)
    unsure = np.where(truth == np.arange(2).reshape(2, 1, 1), 0.55, 0.45)
    assert not suspect(unsure, np.zeros_like(truth)).regions
    unseen = suspect(sure_of(truth), np.full_like(truth, IGNORE))
    assert (unseen.score, unseen.regions) == (0, ())


def test_maps_of_another_resolution_are_put_on_the_grid_by_the_nearest_pixel() -> None:
    assert on_grid(np.array([[1, 2]]), (4,)).tolist() == [[1, 1, 2, 2]]
    assert on_grid(np.array([[1, 2, 3, 4]]), (2,)).tolist() == [[2, 4]]


def test_a_model_is_named_by_its_layer_a_title_or_a_folder() -> None:
    assert parse("rayters") == Predicted(name="rayters", layer="rayters")
    assert parse("A=unet") == Predicted(name="A", layer="unet")
    assert parse("A=./own") == Predicted(name="A", folder="./own")


def test_the_layer_that_is_the_reference_scores_full_marks(study: Study) -> None:
    perfect = {m.name: study.interval("perfect", m.name, raters="truth").mean for m in study.metrics()}
    assert perfect["Dice"] == perfect["IoU"] == perfect["NSD"] == 1
    assert perfect["HD95"] == perfect["ASSD"] == 0
    assert study.best() == "perfect"
    # only a model with a posterior can be held to its percentages
    assert np.isnan(perfect["ECE"])
    assert 0 < study.interval("rayters", "ECE", raters="truth").mean < 1


def test_every_metric_is_measured_for_every_model_case_and_rater(study: Study, digits: Cohort) -> None:
    raters = {*digits.annotators, "reference"}
    for name in ("Dice", "IoU", "HD95", "ASSD", "NSD"):
        found = {(s.model, s.case, s.rater) for s in study.scores if s.metric == name}
        assert found == {(m, row.case, r) for m in study.models for row in digits.cases for r in raters}
    assert {s.metric for s in study.scores if s.rater == "annotators"} >= {
        "GED² (V)",
        "GED² (U)",
        "diversity",
        "Dice soft",
        "Dice match",
    }


def test_the_good_annotator_is_found_most_reliable_and_the_blank_one_least(study: Study) -> None:
    names = [portrait.name for portrait in study.portraits["perfect"]]
    assert names[0] == "good"
    assert names[-1] == "blank"
    good, blank = (next(p for p in study.portraits["perfect"] if p.name == n) for n in ("good", "blank"))
    assert good.reliability == pytest.approx(good.true_reliability)
    assert blank.reliability == pytest.approx(0.5)
    assert good.after > good.before
    assert blank.confusion[:, 1].tolist() == [1, 0]
    assert sum(blank.places) == pytest.approx(1)
    assert good.places == (0, 0, 0)  # it differs nowhere


def test_the_page_is_one_file_that_says_what_the_tables_say(study: Study) -> None:
    page, text = html(study), markdown(study)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert page.count("data:image/jpeg") == len(study.shown) + len(study.faces) + sum(
        bool(s.thumbnail) for s in study.suspects
    )
    for said in ("perfect", "blank", "prefers-color-scheme:dark", "width=device-width", "Labels to look at"):
        assert said in page
    best = str(study.interval("perfect", "Dice", raters="truth"))
    assert best in page
    assert best in text
    assert text.count("\n| ") > 10


def test_names_of_annotators_cannot_put_markup_into_the_page(study: Study) -> None:
    assert "<b>" not in html(Study(**{**vars(study), "models": study.models, "truth": "<b>bold</b>"}))


def test_the_job_writes_the_report_and_its_lists(digits: Cohort, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "jobs/compare.py"), "--cohort", digits.url, "--models", "rayters", "perfect"]
    done = subprocess.run(
        [*command, "--split", "all", "--report", str(tmp_path), "--json", str(tmp_path / "rows.json")],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "perfect overlaps with reference by a Dice of 1.000" in done.stdout
    rows = {row["row"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["perfect, missed with reference"] == 0
    assert rows["perfect, rank correlation of the annotators"] == pytest.approx(1)
    (tmp_path / "rows.json").unlink()
    assert {path.name for path in tmp_path.iterdir()} == {
        "index.html",
        "report.md",
        "scores.csv",
        "suspects.csv",
        "labels.csv",
    }
    with (tmp_path / "labels.csv").open() as file:
        doubts = [float(row["doubt"]) for row in csv.DictReader(file)]
    assert doubts == sorted(doubts, reverse=True)
    with (tmp_path / "scores.csv").open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"rayters", "perfect"}


def test_who_draws_nothing_on_half_of_the_cases_is_not_the_more_exact_for_it(digits: Cohort) -> None:
    study = make_study(digits, [parse("perfect"), parse("timid")], tolerance_um=None)
    assert study.interval("timid", "HD95", raters="truth").mean == 0  # of the cases that it did not miss
    assert study.interval("timid", "missed", raters="truth").mean == 0.5
    assert study.interval("perfect", "missed", raters="truth").mean == 0
    assert "missed ↓" in markdown(study)


def test_a_consensus_that_is_the_reference_ranks_the_annotators_as_the_reference_does(study: Study) -> None:
    assert ranking(study.portraits["perfect"]) == pytest.approx(1)
    assert np.isnan(ranking(study.portraits["perfect"][:2]))  # two are too few
    assert np.isnan(ranking([replace(p, true_reliability=None) for p in study.portraits["perfect"]]))
    assert "Spearman's correlation with their true ranking: 1.00." in markdown(study)


def test_only_a_model_of_several_samples_has_the_unbiased_ged(study: Study) -> None:
    assert {s.model for s in study.scores if s.metric == "GED² (V)"} == {"rayters", "perfect"}
    assert {s.model for s in study.scores if s.metric == "GED² (U)"} == {"rayters"}


@dataclass(frozen=True)
class Planted:
    """A method that knows the truth, believes the opposite, and explains it: wherever it is asked, its confusions are right for the
    class that it believes there, and wrong for the other."""

    def predict(self, truth: Tensor) -> Prediction:
        believed = torch.stack([truth, 1 - truth], dim=1)  # (B, K, *S), swapped
        same, here = torch.eye(2)[None, :, :, None, None], believed[:, None]
        confusion = same * here + (1 - same) * (1 - here)
        return Prediction(posterior=believed, confusion=confusion[:, None])


class Knows(nn.Module):
    """The image is the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, views: Tensor) -> Tensor:
        return (views[:, 0, 0] > 50).float()


@pytest.fixture
def swapped(tmp_path: Path) -> tuple[Model, Cohort]:
    """A model that swapped the two classes of a case of 20 x 27 px, which patches of 16 px do not divide; anna draws the truth."""
    truth = disc(8, 12, 6, shape=(20, 27))
    layers = {Layer(id="anna"): truth, Layer(id="ben"): 1 - truth, Layer(id="reference", role="reference"): truth}
    case = write_case(f"{tmp_path}/case.ome.zarr", truth[None] * np.uint8(100), spacing_um=(1.0, 1.0),
                      classes=("nothing", "disc"), layers=layers)  # fmt: skip
    rows = [describe_case(case, split="test", group="p")]
    cohort = write_cohort(tmp_path, rows, name="disc", classes=case.classes, reference="reference")
    run = replace(Run(patch_px=(16, 16)), method=Planted())
    task = Task(channels=1, classes=2, annotators=1, patch_px=(16, 16), mean=(0.0,), std=(1.0,))
    return Model(run=run, task=task, classes=case.classes, annotators=("anna",), measured={}, net=Knows()), cohort


def test_a_net_that_swapped_the_classes_and_explains_it_well_has_a_large_confusion_error(
    swapped: tuple[Model, Cohort],
) -> None:
    model, cohort = swapped
    found = assess(model, see_cohort(model, cohort))
    assert found.dice is not None
    assert found.dice.tolist() == [0]
    assert np.allclose(found.estimated, np.eye(2))  # as it sees anna, where there is no reference: perfect
    assert np.allclose(found.true, np.eye(2))
    assert found.confusion_error == pytest.approx(1)  # on the pixels of each true class: all wrong
    blind = assess(model, see_cohort(model, replace(cohort, reference=None)))
    assert blind.confusion_error is None
    assert np.allclose(blind.estimated, np.eye(2))


def test_what_lies_beyond_the_border_of_a_case_counts_in_no_confusion(swapped: tuple[Model, Cohort]) -> None:
    model, cohort = swapped
    seen = see_case(model, cohort, cohort.cases[0])
    assert seen.written is not None
    assert seen.estimate is not None
    truth = disc(8, 12, 6, shape=(20, 27))
    assert seen.written[0].sum() == 20 * 27
    assert seen.estimate.pixels.tolist() == [(truth == 0).sum(), (truth == 1).sum()]


def test_annotators_that_a_model_did_not_learn_from_are_counted_against_its_prediction(
    swapped: tuple[Model, Cohort],
) -> None:
    model, cohort = swapped
    found = assess(model, see_cohort(model, cohort, annotators=cohort.annotators))
    assert not found.learnt
    assert found.annotator_dice.tolist() == [[0, 1]]  # ben draws what the model believes
    assert np.allclose(found.estimated, [1 - np.eye(2), np.eye(2)])
    assert found.confusion_error == pytest.approx(1)


def assessment(estimated: tuple[float, ...], true: tuple[float, ...] | None) -> Assessment:
    """Annotators of these reliabilities, as seen and in truth."""

    def matrices(rates: tuple[float, ...]) -> np.ndarray:
        return np.array([[[r, 1 - r], [1 - r, r]] for r in rates])

    return Assessment(method="Any", dice=np.ones(1), annotator_dice=np.ones((1, len(estimated))), learnt=True,
                      estimated=matrices(estimated), conditional=matrices(estimated),
                      true=None if true is None else matrices(true))  # fmt: skip


def test_a_training_says_whether_it_ranks_three_annotators_or_more_as_the_reference_does() -> None:
    right, wrong = assessment((0.9, 0.8, 0.7), (0.8, 0.7, 0.6)), assessment((0.7, 0.8, 0.9), (0.8, 0.7, 0.6))
    assert right.ranking == pytest.approx(1)
    assert wrong.ranking == pytest.approx(-1)
    for unknown in (
        assessment((0.9, 0.8), (0.8, 0.7)),
        assessment((0.9, 0.8, 0.7), None),
        assessment((0.7, 0.7, 0.7), (0.8, 0.7, 0.6)),
    ):
        assert unknown.ranking is None
        assert "rank correlation" not in " ".join(
            row.row for row in contest_rows([Contender(assessed=(unknown,), verdicts=())])
        )
    both = [Contender(assessed=(each,), verdicts=()) for each in (wrong, right)]
    row = next(row for row in contest_rows(both) if "rank correlation" in row.row)
    assert (row.value, row.reference) == (pytest.approx(1), pytest.approx(-1))
    assert "rank correlation" in methods_table(both)


def test_a_model_that_predicted_nothing_is_said_in_one_line(digits: Cohort) -> None:
    with pytest.raises(ValueError, match="no case of cohort 'digits' has both a prediction named nobody"):
        make_study(digits, [parse("nobody")], tolerance_um=None)
