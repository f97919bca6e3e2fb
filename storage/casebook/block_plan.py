"""Which block writes what: a pure plan of the one-pass pyramid.

A block is read once, and every level that it wholly owns is written from it. It owns whole chunks (or whole shards)
of each
of those levels, so no two writers ever touch the same object. Coarser levels, of which a block would own only a part
of a
chunk, form the next round, whose blocks read the coarsest level written so far:

    round 0: source -> levels 0 1 2      round 1: level 2 -> levels 3 4 5      ...
"""

from dataclasses import dataclass
from itertools import product

from casebook.pyramid import level_shape


@dataclass(frozen=True, kw_only=True)
class Round:
    """Blocks that may run in any order: read `base_level` (-1: the source), write `levels`.

    blocks: (origin, size) in pixels of the base level (of level 0 for the source).
    owned: per written level, the region one block owns, in pixels of that level; whole chunks.
    """

    base_level: int
    levels: tuple[int, ...]
    owned: tuple[tuple[int, ...], ...]
    blocks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def level_chunks(shapes: tuple[tuple[int, ...], ...], chunk_px: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The chunk of each level: as asked, never bigger than the level."""
    return tuple(tuple(min(c, n) for c, n in zip(chunk_px, shape, strict=True)) for shape in shapes)


def plan_rounds(
    shape: tuple[int, ...], factors: tuple[tuple[int, ...], ...], chunk_px: tuple[int, ...], block_px: tuple[int, ...]
) -> tuple[Round, ...]:
    """The rounds that write all levels; block_px must be an even multiple of chunk_px."""
    shapes = tuple(level_shape(shape, factor) for factor in factors)
    rounds: list[Round] = []
    done = -1
    while done < len(factors) - 1:
        base = max(done, 0)
        levels, owned = [], []
        for level in range(done + 1, len(factors)):
            region = _owned(shapes, factors, base, level, chunk_px, block_px)
            if region is None:
                break
            levels.append(level)
            owned.append(region)
        if not levels:
            raise ValueError(
                f"blocks of {block_px} px cannot own chunks of {chunk_px} px: use an even multiple of the chunk"
            )
        rounds.append(
            Round(base_level=done, levels=tuple(levels), owned=tuple(owned), blocks=_grid(shapes[base], block_px))
        )
        done = levels[-1]
    return tuple(rounds)


def _owned(
    shapes: tuple[tuple[int, ...], ...],
    factors: tuple[tuple[int, ...], ...],
    base: int,
    level: int,
    chunk_px: tuple[int, ...],
    block_px: tuple[int, ...],
) -> tuple[int, ...] | None:
    """The whole chunks of `level` under one block of `base`, or None when a chunk would have two owners."""
    region = []
    for axis, block in enumerate(block_px):
        ratio = factors[level][axis] // factors[base][axis]
        chunk = min(chunk_px[axis], shapes[level][axis])
        if block >= shapes[base][axis]:
            region.append(-(-shapes[level][axis] // chunk) * chunk)
        elif block % (ratio * chunk) == 0:
            region.append(block // ratio)
        else:
            return None
    return tuple(region)


def _grid(shape: tuple[int, ...], block_px: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    origins = product(*(range(0, n, b) for n, b in zip(shape, block_px, strict=True)))
    return tuple((o, tuple(min(b, n - i) for b, n, i in zip(block_px, shape, o, strict=True))) for o in origins)
