"""Blocks: the chunk-aligned boxes that a case is read in, one per read task.

0        chunk     2         3         4   |
+---------+---------+---------+---------+--:   A block spans whole chunks, so that no chunk is decoded for two tasks;
| block 0           | block 1           |b2:   what is left at the far side makes a smaller block.
+---------+---------+---------+---------+--:   A random epoch moves the seams by whole chunks (``shift``), so that
s|   block 0'     |   block 1'      | b2'  :   over the epochs a patch may straddle any of them.
"""

from dataclasses import dataclass
from math import lcm, prod

import numpy as np

from casebook import CaseRow
from rayters.patches.sampling import Sampling
from rayters.patches.view import View

DEFAULT_BLOCK_PX = {2: 2048, 3: 192}  # measured: below, seams and tasks cost; above, memory grows and nothing is won


@dataclass(frozen=True, kw_only=True)
class BlockGrid:
    """The blocks of one case: per axis, the level-0 coordinate of every seam, the two ends of the case included."""

    seams_px0: tuple[tuple[int, ...], ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(len(seams) - 1 for seams in self.seams_px0)

    def __len__(self) -> int:
        return prod(self.counts)

    def bounds(self, block: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First pixel and one past the last pixel of a block, level 0, per axis."""
        index = np.unravel_index(block, self.counts)
        low = tuple(seams[int(i)] for seams, i in zip(self.seams_px0, index, strict=True))
        high = tuple(seams[int(i) + 1] for seams, i in zip(self.seams_px0, index, strict=True))
        return low, high


def chunk_size_px0(row: CaseRow, target: View) -> tuple[int, ...]:
    """Side of a chunk of the level that the target is read from, in level-0 pixels: a pyramid halves, 1, 2, 4 ... of them per pixel."""
    steps = (1 << max(0, int(down).bit_length() - 1) for down in target.downsampling)
    return tuple(chunk * step for chunk, step in zip(row.chunk_px, steps, strict=True))


def block_size_px0(row: CaseRow, target: View, sampling: Sampling) -> tuple[int, ...]:
    """Side of a block in level-0 pixels: whole chunks; on a grid of targets whole targets, and whole chunks if both fit."""
    wanted = sampling.block_px or DEFAULT_BLOCK_PX[len(row.shape)]
    sides = []
    for chunk, chunk_px0, field in zip(
        row.chunk_px, chunk_size_px0(row, target), target.field_of_view_px0, strict=True
    ):
        wanted_px0 = wanted * chunk_px0 // chunk
        if sampling.patches_per_epoch is not None:
            # two chunks at least, or no patch would ever straddle a chunk border
            sides.append(chunk_px0 * max(2, round(wanted_px0 / chunk_px0), -(-field // chunk_px0) + 1))
        else:
            both = lcm(chunk_px0, field)
            unit = both if both <= 2 * wanted_px0 else field
            sides.append(unit * max(1, round(wanted_px0 / unit)))
    return tuple(sides)


def block_grid(
    row: CaseRow, side_px0: tuple[int, ...], shift_px0: tuple[int, ...], least_px0: tuple[int, ...]
) -> BlockGrid:
    """Cut a case into blocks of ``side_px0`` whose first seam lies at ``shift_px0``; none narrower than ``least_px0`` if avoidable."""
    seams = []
    for extent, side, shift, least in zip(row.shape, side_px0, shift_px0, least_px0, strict=True):
        inner = [s for s in range(shift if shift else side, extent, side) if least <= s <= extent - least]
        seams.append((0, *inner, extent))
    return BlockGrid(seams_px0=tuple(seams))
