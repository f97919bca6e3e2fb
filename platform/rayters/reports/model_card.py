"""The card of the model that a search chose: what it learnt from, from whom, how noisy that was, and what it must not be used for.

Source: Mitchell et al., Model cards for model reporting, FAT* 2019.
"""

import numpy as np

from rayters.reports.leaderboard import Leaderboard


def model_card(board: Leaderboard) -> list[tuple[str, list[str]]]:
    """Headings, each with its sentences."""
    chosen, cohort = board.chosen, board.cohort
    counts = ", ".join(f"{len(cohort.split(name).cases)} {name}" for name in ("train", "validation", "test"))
    groups = len({row.group for row in cohort.cases})
    persons = (
        "each name is one person"
        if cohort.stable_annotators
        else "a name is not one person: nothing is said of persons"
    )
    folder = max(chosen.seeds, key=lambda seed: seed.dice).folder
    kept = f"Trained from {len(chosen.seeds)} seeds; best by the criterion: {folder or 'not kept'}."
    size = (
        f"{cohort.name}: {len(cohort.cases)} cases of {groups} groups ({counts}); classes {', '.join(cohort.classes)}."
    )
    licence = cohort.licence or "The cohort names none: ask its owner before the model is passed on."
    return [
        ("Model", [f"{chosen.title}: {chosen.changed}.", kept]),
        ("Data", [size, cohort.url]),
        ("Licence of the data", [licence]),
        ("Annotators", [f"{len(cohort.annotators)}: {', '.join(cohort.annotators)}; {persons}."]),
        ("Noise found", _noise(board)),
        ("Figures", _figures(board)),
        ("Limits", _limits(board)),
    ]


def _noise(board: Leaderboard) -> list[str]:
    known = [(name, value) for name, value in board.noise if not np.isnan(value)]
    if not known:
        return ["No case was drawn by two annotators: their agreement is not known."]
    worst, best = min(known, key=lambda each: each[1]), max(known, key=lambda each: each[1])
    mean = float(np.mean([value for _, value in known]))
    return [
        f"Annotators agree with one another by a Dice of {mean:.3f} on the mean; most {best[0]} ({best[1]:.3f}), least "
        f"{worst[0]} ({worst[1]:.3f}). Training and validation labels; a criterion made of them cannot see finer than this."
    ]


def _figures(board: Leaderboard) -> list[str]:
    chosen, base = board.chosen, board.baseline
    lines = [
        f"Dice with the annotators, validation (the criterion): {chosen.mean('dice'):.4f}; test: {chosen.on_test('noisy'):.4f}."
    ]
    if not np.isnan(chosen.on_test("reference")):
        lines.append(f"Dice with the reference, test, reported only: {chosen.on_test('reference'):.4f}.")
    if base is not None and base is not chosen:
        p = board.p_values("noisy")[chosen.number]
        tested = "too few patients for a test" if np.isnan(p) else f"p = {p:.3g}, Wilcoxon, Holm"
        lines.append(
            f"Best method as it comes ({base.title}): {base.mean('dice'):.4f} and {base.on_test('noisy'):.4f}; test cases: {tested}."
        )
    return lines


def _limits(board: Leaderboard) -> list[str]:
    chosen, cohort = board.chosen, board.cohort
    lines = [
        "It was chosen by agreement with annotators: an error that all of them share is learnt, and is not seen in the criterion."
    ]
    lines.append(
        f"The best of {len(board.entries)} candidates on {len(cohort.split('validation').cases)} validation cases "
        "looks better there than it is; read the test."
    )
    if cohort.reference is None:
        lines.append("There is no reference: nothing here says how far from the truth it is.")
    if chosen.candidate.get("downsampling", 1) != 1:
        lines.append(
            f"It sees one pixel in {chosen.candidate['downsampling']} along each axis: finer structures are lost."
        )
    return [*lines, "Other scanners, stains, organs and populations were not tested. Not a medical device."]
