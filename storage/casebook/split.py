"""Splits by group: all cases of one patient are in the same split, or the test would measure memory."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

SPLITS = ("train", "validation", "test")


def split_by_group(
    groups: Sequence[str],
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    *,
    seed: int = 0,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Assigns each group to a split so that the numbers of *cases* come close to the fractions.

    groups: the group of each case, repeated per case. fixed: groups whose split is already settled and stays.
    The order of the groups is a hash of (seed, group): independent of the order in which the cases came.
    """
    if len(fractions) != 3 or min(fractions) < 0 or sum(fractions) <= 0:
        raise ValueError(f"split fractions {fractions}: three numbers >= 0 (train, validation, test) were expected")
    sizes = Counter(groups)
    settled = {group: split for group, split in (fixed or {}).items() if group in sizes}
    placed = Counter({split: sum(sizes[g] for g, s in settled.items() if s == split) for split in SPLITS})
    share = {split: fraction / sum(fractions) for split, fraction in zip(SPLITS, fractions, strict=True)}
    for group in sorted(sizes.keys() - settled.keys(), key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest()):
        total = sum(placed.values()) + sizes[group]
        settled[group] = max((s for s in SPLITS if share[s] > 0), key=lambda s: share[s] * total - placed[s])
        placed[settled[group]] += sizes[group]
    return settled
