"""The leaderboard as one page for people (HTML, nothing outside of it is loaded) and as Markdown for a pull request."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files

import numpy as np

from rayters.reports.charts import bars, learning_curves, parallel_coordinates
from rayters.reports.leaderboard import Entry, Leaderboard
from rayters.reports.model_card import model_card

HEADER = ("candidate", "Dice, validation", "Dice, test", "p", "reference", "ECE", "s per training", "changed")
MEANING = (
    "Dice, validation is the criterion: agreement with the annotators' own labels, mean ± sd over seeds. Dice, test is the same on cases "
    "that had no part in the choice, and p asks whether it differs from the best method as it comes (Wilcoxon over patients, "
    "corrected by Holm). The reference is reported and nothing was chosen by it. ECE: whether percentages can be taken at their "
    "word, 0 is best."
)


def headline(board: Leaderboard) -> str:
    """The result in two sentences."""
    chosen, base = board.chosen, board.baseline
    first = f"{chosen.title} agrees best with the annotators: a Dice of {_spread(chosen)} on validation."
    if base is None:
        return f"{first} Every method as it comes failed."
    if base is chosen:
        return f"{first} The search found nothing better than a method as it comes."
    gain = chosen.on_test("noisy") - base.on_test("noisy")
    p = board.p_values("noisy")[chosen.number]
    sure = "too few patients to test" if np.isnan(p) else f"p = {p:.3g}"
    return f"{first} Against the best method as it comes ({base.title}), {gain:+.4f} on the test cases ({sure})."


def lines(board: Leaderboard) -> list[list[str]]:
    """One line per entry, under ``HEADER``."""
    p = board.p_values("noisy")
    return [
        [each.title + ("" if each.state == "whole" else f" ({each.state})"), _spread(each), _number(each.on_test("noisy")),
         _number(p.get(each.number, np.nan), ".2g"), _number(each.on_test("reference")), _number(each.mean("ece")),
         _number(each.mean("seconds"), ".0f"), each.why or each.changed]
        for each in board.entries
    ]  # fmt: skip


def markdown(board: Leaderboard) -> str:
    """For a pull request."""
    parts = [f"# Search on {board.cohort.name}", headline(board), _md(HEADER, lines(board)), MEANING]
    if shares := board.importance():
        parts += [
            "## What mattered",
            _md(("parameter", "importance"), [[name, f"{share:.0%}"] for name, share in shares]),
        ]
    parts += ["## Model card", *(f"**{title}.** {' '.join(said)}" for title, said in model_card(board))]
    parts += (
        ["## Settings", _md(("", ""), [[name, value] for name, value in board.settings.items()])]
        if board.settings
        else []
    )
    return "\n\n".join(parts) + "\n"


def html(board: Leaderboard) -> str:
    """One file: styles and pictures inside."""
    style = "".join(files("rayters.reports").joinpath(name).read_text() for name in ("page.css", "leaderboard.css"))
    title = escape(f"Search on {board.cohort.name}")
    body = "".join((
        f'<h1>{title}</h1><p class="soft">{len(board.entries)} candidates, {_cost(board)}</p><p class="lead">{escape(headline(board))}</p>',
        f"<h2>Candidates</h2>{_table(board)}<p class=soft>{escape(MEANING)}</p>",
        "<h2>Where the good ones lie</h2><p class=soft>A line is a candidate, the best in colour; a gap: no such parameter.</p>",
        parallel_coordinates(board.entries, board.parameters()),
        _importance(board),
        _curves(board),
        _card(board),
        _settings(board),
    ))  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def _table(board: Leaderboard) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in HEADER)
    rows = "".join(
        f"<tr{' class=best' if index == 0 else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for index, cells in enumerate(lines(board))
    )
    return f'<div class="scroll"><table class="board"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _importance(board: Leaderboard) -> str:
    shares = board.importance()
    if not shares:
        return ""
    said = "The share by which a forest's prediction of the criterion suffers when the parameter is shuffled. Of few, a hint only."
    return f"<h2>What mattered</h2><p class=soft>{said}</p>{bars(shares)}"


def _curves(board: Leaderboard) -> str:
    said = "Dice with the annotators' common opinion on validation, as each method weighs it; a line is a training, the best in colour."
    picture = learning_curves(board.entries)
    return f"<h2>Learning curves</h2><p class=soft>{said}</p>{picture}" if picture else ""


def _card(board: Leaderboard) -> str:
    entries = "".join(f"<dt>{escape(title)}</dt><dd>{escape(' '.join(said))}</dd>" for title, said in model_card(board))
    return f"<h2>Card of the chosen model</h2><dl>{entries}</dl>"


def _settings(board: Leaderboard) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in board.settings.items())
    return f"<h2>Settings</h2><dl>{rows}</dl>" if rows else ""


def _cost(board: Leaderboard) -> str:
    trainings = [seed for each in board.entries for seed in each.seeds]
    return f"{len(trainings)} trainings, {sum(seed.seconds for seed in trainings) / 3600:.2f} hours of training in all"


def _spread(entry: Entry) -> str:
    sd = entry.sd("dice")
    return _number(entry.mean("dice")) + ("" if np.isnan(sd) else f" ± {sd:.4f}")


def _number(value: float, form: str = ".4f") -> str:
    return "-" if np.isnan(value) else format(value, form)


def _md(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    every = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in every)
