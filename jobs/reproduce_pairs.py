"""Rows of an experiment compared image by image: the mean difference, where it lies, and whether it could be chance.

Every row is tested on the same images, so what makes an image hard is taken off before anything is averaged. Values are averaged over
the seeds that both rows have and within a patient, whose images are not independent; a patient is what the interval draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayters.reports.rows import table
from rayters.reports.statistics import by_group, holm, interval, paired_p

Measured = tuple[Mapping[str, Any], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two rows of one setting, by key."""

    setting: str
    ours: str
    peer: str


def compared(measured: Sequence[Measured], pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """What is known of each pair of which both rows were measured, in order.

    measured: trials with "row", "setting", "seed", and results with "patients": {name: Dice}.
    Returns "setting", "ours", "peer", "difference" of their Dice with its 95 % interval "low", "high" over patients, the number of
    "patients", in how many ours "wins", how many "seeds", and Wilcoxon's "p", corrected by Holm over the list. Of one patient nothing can
    be said but the difference: "low", "high" and "p" are None.
    """
    found = {(t["setting"], t["row"], t["seed"]): r["patients"] for t, r in measured if "patients" in r}
    lines = [line for pair in pairs if (line := _line(pair, found))]
    corrected = holm([line["p"] for line in lines])
    return [_known(line | {"p": p}) for line, p in zip(lines, corrected, strict=True)]


def pairs_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The comparisons in words and figures."""
    cells = [
        [f"{each['setting']}: {each['ours']} - {each['peer']}", f"{each['difference']:+.4f}"]
        + ["-" if each["low"] is None else f"[{each['low']:+.4f}, {each['high']:+.4f}]"]
        + [f"{each['wins']} / {each['patients']}", "-" if each["p"] is None else f"{each['p']:.2g}"]
        for each in lines
    ]
    return table(["Dice, image by image", "difference", "95 %", "wins / images", "p (Holm)"], cells)


def _known(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in line.items()}


def _line(pair: Pair, found: Mapping[tuple[str, str, int], Mapping[str, float]]) -> dict[str, Any] | None:
    seeds = sorted(seed for setting, row, seed in found if (setting, row) == (pair.setting, pair.ours))
    shared = [seed for seed in seeds if (pair.setting, pair.peer, seed) in found]
    if not shared:
        return None
    both = [(found[pair.setting, pair.ours, seed], found[pair.setting, pair.peer, seed]) for seed in shared]
    apart = [(name, ours[name] - peer[name]) for ours, peer in both for name in ours if name in peer]
    means = by_group([difference for _, difference in apart], [name for name, _ in apart])
    spread = interval(list(means.values()), list(means))
    return {
        "setting": pair.setting,
        "ours": pair.ours,
        "peer": pair.peer,
        "difference": spread.mean,
        "low": spread.low,
        "high": spread.high,
        "patients": len(means),
        "wins": sum(each > 0 for each in means.values()),
        "seeds": len(shared),
        "p": paired_p(np.array(list(means.values()))),
    }
