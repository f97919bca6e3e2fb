"""The leaderboard: a test on cases that did not choose, the best method as it comes to beat, one self-contained page, a model card."""

import math
import re
from pathlib import Path

import pytest

from casebook import CaseRow, Cohort
from rayters.reports.charts import parallel_coordinates
from rayters.reports.leaderboard import Entry, Leaderboard, Seed
from rayters.reports.leaderboard_page import headline, html, lines, markdown
from rayters.reports.model_card import model_card


def row(index: int) -> CaseRow:
    split = "train" if index < 2 else "validation" if index < 4 else "test"
    return CaseRow(
        case=f"c{index}", url=f"c{index}", split=split, group=f"patient {index}", axes=("y", "x"), channels=1, dtype="uint8",
        shape=(8, 8), spacing_um=(1.0, 1.0), chunk_px=(8, 8), annotators=("anna", "ben"), mean=(0.0,), std=(1.0,), block_px=(8, 8),
        foreground=((1,), (1,)), disagreement=(0,),
    )  # fmt: skip


def cohort(licence: str | None = "CC BY 4.0") -> Cohort:
    return Cohort(
        url="x", name="<cells>", classes=("background", "cell"), annotators=("anna", "ben"), stable_annotators=True,
        reference="gold", licence=licence, cases=tuple(row(index) for index in range(14)),
    )  # fmt: skip


def entry(number: int, worth: float, *, is_default: bool = False, shift: float = 0.0, **parameters: object) -> Entry:
    """Two seeds, 0.02 apart on validation; on test case i Dice worth + i / 100 + shift."""
    noisy = {f"c{index}": worth + index / 100 + shift for index in range(4, 14)}
    seeds = tuple(
        Seed(
            dice=worth + d,
            ece=0.1,
            seconds=60,
            noisy=noisy,
            reference=dict.fromkeys(noisy, 0.5),
            curve=[0.1, worth],
            folder=f"m{d}",
        )
        for d in (-0.01, 0.01)
    )
    return Entry(number=number, candidate={"method": "TLoss", **parameters}, seeds=seeds, is_default=is_default)


def board(**settings: str) -> Leaderboard:
    found = [entry(2, 0.8, fusion="mean", nu=2.0), entry(0, 0.7, is_default=True, fusion="vote", nu=1.0)]
    found += [entry(n, 0.6 - n / 100, fusion="vote", nu=1.0 + n / 10) for n in range(3, 9)]
    return Leaderboard(cohort=cohort(), entries=tuple(found), settings=settings, noise=[("anna", 0.9), ("ben", 0.7)])


def test_seeds_are_a_mean_and_a_deviation() -> None:
    assert entry(0, 0.7).mean("dice") == pytest.approx(0.7)
    assert entry(0, 0.7).sd("dice") == pytest.approx(0.02 / math.sqrt(2))


def test_entries_are_tested_against_the_best_method_as_it_comes_on_test_cases_and_corrected() -> None:
    p = board().p_values("noisy")
    assert 0 not in p  # the baseline is not compared with itself
    assert p[2] == pytest.approx(7 * 2 / 2**10)  # all ten patients agree: 2 / 2^10, of seven comparisons
    assert board().p_values("reference")[2] == 1.0  # nothing differs there


def test_what_decides_the_criterion_is_important_and_what_does_not_is_not() -> None:
    found = [entry(n, 0.5 + 0.04 * (n % 5), nu=float(n % 5), gamma=float(n % 2)) for n in range(20)]
    shares = dict(Leaderboard(cohort=cohort(), entries=tuple(found)).importance())
    assert shares["nu"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


def test_nothing_is_chosen_where_every_candidate_failed() -> None:
    failed = Entry(number=0, candidate={"method": "TLoss"}, seeds=(), state="failed", why="no luck", is_default=True)
    with pytest.raises(ValueError, match="nothing can be chosen"):
        _ = Leaderboard(cohort=cohort(), entries=(failed,)).chosen


def test_the_headline_says_whether_the_search_beat_what_was_there() -> None:
    assert "Against the best method as it comes (TLoss, as it comes), +0.1000" in headline(board())
    alone = Leaderboard(cohort=cohort(), entries=(entry(0, 0.7, is_default=True),))
    assert "found nothing better" in headline(alone)


def test_the_page_loads_nothing_and_has_every_candidate_in_light_and_dark() -> None:
    page = html(board(sampler="tpe"))
    assert not re.search(r'(src|href)="(?!data:)|https?://|<script|@import', page)
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page
    assert page.count("<svg") == 2
    assert all(line[0] in page for line in lines(board()))
    assert "<cells>" not in page  # escaped
    assert "&lt;cells&gt;" in page


def test_the_markdown_is_a_table_of_the_same_figures() -> None:
    text = markdown(board())
    assert "| TLoss, no. 2 | 0.8000 ± 0.0141 | 0.8850 | 0.014 | 0.5000 |" in text
    assert "## Model card" in text


def test_the_model_card_says_data_annotators_noise_licence_and_limits() -> None:
    card = {title: " ".join(said) for title, said in model_card(board())}
    assert "14 cases of 14 groups (2 train, 2 validation, 10 test)" in card["Data"]
    assert card["Licence of the data"] == "CC BY 4.0"
    assert "Dice of 0.800 on the mean; most anna (0.900), least ben (0.700)" in card["Noise found"]
    assert "an error that all of them share is learnt" in card["Limits"]
    assert "m0.01" in card["Model"]  # the seed that is best by the criterion


def test_a_cohort_without_a_licence_is_told() -> None:
    bare = Leaderboard(cohort=cohort(licence=None), entries=board().entries)
    assert "ask its owner" in dict(model_card(bare))["Licence of the data"][0]


def test_a_candidate_without_a_parameter_leaves_a_gap_on_its_axis() -> None:
    both = parallel_coordinates([entry(0, 0.7, nu=1.0), entry(1, 0.6)], ["TLoss.nu", "nu"])
    (lacking, having) = re.findall(r'<path d="([^"]*)"', both)
    assert (lacking.count(","), having.count(",")) == (1, 2)


def test_styles_travel_with_the_package() -> None:
    assert (Path(__file__).parents[1] / "platform/rayters/reports/leaderboard.css").exists()
