"""Who drew what in a cohort, how well they agree, and which pairs a person should look at."""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from casebook import IGNORE, Case, CasebookError, Cohort, open_case
from rayters.annotators.agreement import fleiss_kappa, pair_counts, suspicious_pairs

MOST_PIXELS = 2**22  # agreement is measured on the finest level of at most so many
CLEARLY = 0.7  # Dice after a shift, above which the shift is the explanation


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
    found = {s.pair: (s.dice, s.reason) for s in suspicious_pairs(counts)}
    for pair in combinations(range(len(people)), 2):
        shift, before, after = best_shift(layers[pair[0]], layers[pair[1]])
        if after > before + 0.2 and (
            pair not in found or after > CLEARLY
        ):  # a clear shift says more than a low agreement
            found[pair] = (before, f"displaced: moved by {shift} px their Dice would be {after:.2f}")
    return [(f"{people[a]} - {people[b]}", dice, why) for (a, b), (dice, why) in found.items()]


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
