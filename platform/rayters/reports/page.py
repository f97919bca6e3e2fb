"""The comparison as one page for people (HTML, nothing outside of it is loaded) and as Markdown for a pull request."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files

import numpy as np

from rayters.reports.annotators import PLACES, Portrait, ranking
from rayters.reports.scores import SET, Metric
from rayters.reports.statistics import Comparison
from rayters.reports.study import Study
from rayters.reports.thumbnails import person_colour

MOST_DOUBTED = 10  # label maps in the list; labels.csv has all
MEANING = {
    "Dice": "How much two outlines overlap: 1 is the same area, 0 none of it. IoU says the same on a stricter scale.",
    "HD95, ASSD": "How far apart two outlines are, in micrometres: the 95th percentile, and the mean. Cases in 'missed' are not in it.",
    "missed": "The share of cases in which only one of the two drew a class at all: outlines infinitely far apart. 0 is best.",
    "NSD": "The share of the outlines that lies within a tolerance of each other.",
    "ECE, Brier, NLL": "Whether the model's percentages can be taken at their word; 0 is best.",
    "GED²": "How well the variety of the annotators is reproduced; 0 is best. V counts a map with itself, as the literature does, and is "
    "too high with few samples; U does not, and may fall below 0. Diversity is the model's own variety.",
    "Reliability": "How often an annotator writes what the consensus says, mean over the classes. Guessing gives 1 / classes.",
    "Interval": "In brackets: where the mean lies with 95 % confidence, had other patients been drawn (bootstrap over patients).",
}


def headline(study: Study) -> str:
    """The result in two sentences."""
    best = study.best()
    found = study.interval(best, "Dice", raters="truth")
    first = f"{best} overlaps with {study.truth} by a Dice of {found}, over {found.groups} patients."
    if len(study.models) < 2:
        return first
    dice = Metric(name="Dice", higher_is_better=True)
    apart = [each for each in study.pairs(dice) if best in (each.first, each.second)]
    sure = [each for each in apart if each.p < 0.05]
    others = ", ".join(each.second if each.first == best else each.first for each in sure)
    stable = study.stability(dice).first[best]
    often = "" if np.isnan(stable) else f" It comes first in {stable:.0%} of the resampled studies."
    verdict = (
        f"The difference is significant against {others}."
        if sure
        else "No difference between the models is significant."
    )
    return f"{first} {verdict}{often}"


def metrics_rows(study: Study, raters: str) -> tuple[list[str], list[list[str]]]:
    """Header and lines: a model each, mean and interval per metric."""
    metrics = [
        m
        for m in study.metrics()
        if any(s.metric == m.name and (s.rater != SET) == (raters != "sets") for s in study.scores)
    ]
    header = ["model", *(f"{m.name} {m.unit}".strip() + (" ↑" if m.higher_is_better else " ↓") for m in metrics)]
    kind = "truth" if raters == "sets" else raters
    return header, [[name, *(str(study.interval(name, m.name, raters=kind)) for m in metrics)] for name in study.models]


def tests_rows(pairs: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the paired tests."""
    header = ["Dice", "difference", "better in", "p (Wilcoxon, Holm)"]
    lines = [
        [
            f"{c.first} - {c.second}",
            f"{c.difference:+.3f}",
            f"{c.wins} of {c.groups}",
            "-" if np.isnan(c.p) else f"{c.p:.3g}",
        ]
        for c in pairs
    ]
    return header, lines


def annotators_rows(portraits: Sequence[Portrait]) -> tuple[list[str], list[list[str]]]:
    """Header and lines, an annotator each."""
    header = ["annotator", "cases", "reliability", "true", "Dice with the others", "with the consensus", *PLACES]
    lines = [
        [p.name, str(p.cases), f"{p.reliability:.3f}", "-" if p.true_reliability is None else f"{p.true_reliability:.3f}",
         _number(p.before), _number(p.after), *(f"{share:.0%}" for share in p.places)]
        for p in portraits
    ]  # fmt: skip
    return header, lines


def ranking_said(portraits: Sequence[Portrait]) -> str:
    """Whether the annotators are ranked as the reference ranks them, in a sentence; nothing where that is not known."""
    found = ranking(portraits)
    return "" if np.isnan(found) else f"Spearman's correlation with their true ranking: {found:.2f}."


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def markdown(study: Study) -> str:
    """For a pull request."""
    best, dice = study.best(), Metric(name="Dice", higher_is_better=True)
    parts = [f"# {study.cohort.name}: {', '.join(study.models)}", headline(study)]
    parts += [f"## Against {study.truth}", _md(*metrics_rows(study, "truth"))]
    if study.cohort.reference:
        parts += ["## Against the annotators, mean over them", _md(*metrics_rows(study, "annotators"))]
    parts += ["## As sets: what annotators draw", _md(*metrics_rows(study, "sets"))]
    if len(study.models) > 1:
        stability = study.stability(dice)
        parts += ["## Paired", _md(*tests_rows(study.pairs(dice)))]
        parts += [f"Kendall's tau of the ranking under resampling: {stability.tau:.2f}."]
    parts += [f"## Annotators, as {best} sees them", _md(*annotators_rows(study.portraits[best]))]
    parts += [said] if (said := ranking_said(study.portraits[best])) else []
    lines = [
        [
            s.case,
            s.annotator,
            f"{s.region.score:.2f}",
            str(s.region.pixels),
            _quarrel(study, s.region.written, s.region.seen),
        ]
        for s in study.suspects[:20]
    ]
    parts += ["## Labels to look at", _md(["case", "annotator", "score", "pixels", "written → seen"], lines)]
    parts += ["Whole label maps, the least probable first:", _md(["case", "annotator", "doubt"], _doubts(study))]
    return "\n\n".join(parts) + "\n"


def _doubts(study: Study) -> list[list[str]]:
    return [[d.case, d.annotator, f"{d.score:.3f}"] for d in study.doubts[:MOST_DOUBTED]]


def _quarrel(study: Study, written: int, seen: int) -> str:
    return f"{study.cohort.classes[written]} → {study.cohort.classes[seen]}"


def _md(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def html(study: Study) -> str:
    """One file: styles and pictures inside."""
    best, dice = study.best(), Metric(name="Dice", higher_is_better=True)
    body = [
        f"<h1>{escape(study.cohort.name)}</h1>",
        f'<p class="soft">{len(study.cohort.cases)} cases, classes {escape(", ".join(study.cohort.classes))}; '
        f"models: {escape(', '.join(study.models))}</p>",
        f'<p class="lead">{escape(headline(study))}</p>',
        f"<h2>How good, against {escape(study.truth)}</h2>",
        _table(*metrics_rows(study, "truth"), best=best),
    ]
    if study.cohort.reference:
        body += [
            "<h2>How close to the annotators, mean over them</h2>",
            _table(*metrics_rows(study, "annotators"), best=best),
        ]
    body += ["<h2>Does it vary as the annotators do?</h2>", _table(*metrics_rows(study, "sets"), best=best)]
    if len(study.models) > 1:
        body += ["<h2>Model against model</h2>", _table(*tests_rows(study.pairs(dice)))]
        tau = study.stability(dice).tau
        body += [
            f'<p class="soft">With other patients the ranking would be alike by a Kendall tau of {tau:.2f} (1: the same).</p>'
        ]
    body += [_annotators(study, best), _suspects(study), _gallery(study), _meaning()]
    style = files("rayters.reports").joinpath("page.css").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(study.cohort.name)}</title><style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], *, best: str = "") -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    rows = "".join(
        f"<tr{' class=best' if line[0] == best else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in line)
        + "</tr>"
        for line in lines
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _dot(study: Study, name: str) -> str:
    names = list(study.cohort.annotators)
    r, g, b = person_colour(names.index(name) if name in names else 0)
    return f'<span class="dot" style="background:rgb({r},{g},{b})"></span>'


def _annotators(study: Study, best: str) -> str:
    portraits = study.portraits[best]
    cards = []
    for p in portraits:
        picture = (
            f'<img alt="outlines of {escape(p.name)}" src="{study.faces[p.name]}">' if p.name in study.faces else ""
        )
        where = (
            f"Differs {PLACES[int(np.argmax(p.places))]} for the most part ({max(p.places):.0%})."
            if any(p.places)
            else ""
        )
        cards.append(
            f'<div class="card"><h3>{_dot(study, p.name)}{escape(p.name)}</h3>{picture}'
            f"<p>Reliability {p.reliability:.3f} over {p.cases} cases. {escape(where)} "
            f"Shown: {escape(p.case)}, Dice {p.case_dice:.3f} with the consensus (white).</p>{_matrix(study, p)}</div>"
        )
    explained = (
        f"As {escape(best)} sees them. An annotator who agrees more with the consensus than with the others was corrected by it. "
        f"The picture is the case in which each differs most. {ranking_said(portraits)}"
    )
    return (
        f"<h2>The annotators</h2><p class=soft>{explained}</p>{_table(*annotators_rows(portraits))}"
        f'<div class="grid" style="margin-top:1rem">{"".join(cards)}</div>'
    )


def _matrix(study: Study, p: Portrait) -> str:
    """Rows: what was written; columns: what the consensus says."""
    names = study.cohort.classes
    if len(names) > 6:
        return ""
    head = "".join(f"<th>{escape(name[:10])}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{escape(name[:10])}</th>"
        + "".join(
            "<td>-</td>" if np.isnan(v) else f'<td style="background:rgba(11,110,138,{v * 0.55:.2f})">{v:.2f}</td>'
            for v in p.confusion[i]
        )
        + "</tr>"
        for i, name in enumerate(names)
    )
    return f'<table class="matrix"><tr><th>wrote \\ is</th>{head}</tr>{rows}</table>'


def _suspects(study: Study) -> str:
    cards = [
        f'<div class="card"><h3>{index}. {escape(s.case)}</h3><img loading="lazy" alt="suspicious region" src="{s.thumbnail}">'
        f"<p>{_dot(study, s.annotator)}{escape(s.annotator)} wrote {escape(study.cohort.classes[s.region.written])}, the model sees "
        f"{escape(study.cohort.classes[s.region.seen])} (white). {s.region.pixels} pixels, score {s.region.score:.2f}.</p></div>"
        for index, s in enumerate((s for s in study.suspects if s.thumbnail), start=1)
    ]
    if not cards:
        return "<h2>Labels to look at</h2><p>None: no label contradicts a confident prediction, or no posterior was found.</p>"
    explained = "Regions in which a confident model contradicts a label by more than the width of an outline, most suspicious first."
    doubted = "; ".join(f"{escape(case)} by {escape(who)} ({score})" for case, who, score in _doubts(study))
    whole = f'<p class="soft">Whole label maps, the least probable first (0 to 1): {doubted}.</p>'
    return f'<h2>Labels to look at</h2><p class="soft">{explained}</p><div class="grid">{"".join(cards)}</div>{whole}'


def _gallery(study: Study) -> str:
    legend = " ".join(f"{_dot(study, name)}{escape(name)}" for name in study.cohort.annotators)
    cards = [
        f'<div class="card"><h3>{escape(s.case)}</h3><img loading="lazy" alt="case {escape(s.case)}" src="{s.thumbnail}">'
        f"<p>Dice {s.dice:.3f}</p></div>"
        for s in study.shown
    ]
    return (
        f"<h2>Cases, from the worst to the best</h2><p class=soft>{legend} <span class=dot style='background:#fff'></span>"
        f'{escape(study.best())}</p><div class="grid">{"".join(cards)}</div>'
    )


def _meaning() -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in MEANING.items())
    return f"<h2>What the figures mean</h2><dl>{entries}</dl>"
