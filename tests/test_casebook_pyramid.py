"""The pyramid: means for images, the most frequent value for labels, every chunk with one owner."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casebook.block_plan import level_chunks, plan_rounds
from casebook.pyramid import level_factors, level_shape, mean_down, mode_down


def test_the_mean_of_four_rounds_halves_up():
    assert mean_down(np.array([[[1, 2], [2, 1]]], np.uint8), (2, 2)).tolist() == [[[2]]]
    assert mean_down(np.array([[[255, 255], [255, 255]]], np.uint8), (2, 2)).tolist() == [[[255]]]
    assert mean_down(np.array([[[-3, -3], [-2, -2]]], np.int16), (2, 2)).tolist() == [[[-2]]]


def test_an_odd_last_pixel_is_its_own_mean():
    assert mean_down(np.array([[[10, 20, 7]]], np.uint8), (1, 2)).tolist() == [[[15, 7]]]


def test_labels_are_never_averaged_and_ties_favour_no_class():
    assert mode_down(np.array([[0, 2], [2, 1]], np.uint8), (2, 2)).tolist() == [[2]]
    assert mode_down(np.array([[0, 2], [2, 0]], np.uint8), (2, 2)).tolist() == [[0]]
    assert mode_down(np.array([[2, 0], [0, 2]], np.uint8), (2, 2)).tolist() == [[2]]


@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=60, deadline=None)
def test_the_mode_is_what_counting_says(seed, shape):
    block = np.random.default_rng(seed).integers(0, 3, shape, dtype=np.uint8)
    coarse = mode_down(block, (2, 2, 1))
    padded = np.pad(block, [(0, shape[0] % 2), (0, shape[1] % 2), (0, 0)], mode="edge")
    for index in product(*map(range, coarse.shape)):
        window = padded[2 * index[0] : 2 * index[0] + 2, 2 * index[1] : 2 * index[1] + 2, index[2]].reshape(-1)
        counts = np.bincount(window, minlength=3)
        assert counts[coarse[index]] == counts.max()


def test_levels_end_when_the_longest_side_is_short():
    assert level_factors((20000, 30000), (0.25, 0.25))[-1] == (256, 256)
    assert level_factors((100, 128), (1, 1)) == ((1, 1),)
    assert level_factors((1, 1, 500), (1, 1, 1)) == ((1, 1, 1), (1, 1, 2), (1, 1, 4), (1, 1, 8))


sides = st.integers(1, 3000)


@given(
    st.one_of(st.tuples(sides, sides), st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))),
    st.sampled_from([16, 32, 64]),
    st.tuples(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.1, 5)),
)
@settings(max_examples=150, deadline=None)
def test_every_pixel_of_every_level_is_written_once_and_every_chunk_has_one_owner(shape, side, spacing):
    factors = level_factors(shape, spacing[: len(shape)])
    chunk = (side,) * len(shape)
    rounds = plan_rounds(shape, factors, chunk, tuple(4 * c for c in chunk))
    shapes = tuple(level_shape(shape, f) for f in factors)
    chunks = level_chunks(shapes, chunk)
    written = [level for r in rounds for level in r.levels]
    assert written == list(range(len(factors)))
    for r in rounds:
        base = max(r.base_level, 0)
        for level, owned in zip(r.levels, r.owned, strict=True):
            assert all(o % c == 0 for o, c in zip(owned, chunks[level], strict=True))
            step = tuple(f // b for f, b in zip(factors[level], factors[base], strict=True))
            total = 0
            for origin, size in r.blocks:
                grid = tuple(o // b for o, b in zip(origin, r.blocks[0][1], strict=True))
                start = tuple(g * o for g, o in zip(grid, owned, strict=True))
                assert start == tuple(o // s for o, s in zip(origin, step, strict=True))
                part = tuple(-(-n // s) for n, s in zip(size, step, strict=True))
                assert all(p <= o for p, o in zip(part, owned, strict=True))
                total += int(np.prod(part))
            assert total == int(np.prod(shapes[level]))


def test_a_block_that_cannot_own_a_chunk_is_refused():
    with pytest.raises(ValueError, match="even multiple"):
        plan_rounds((4000, 4000), level_factors((4000, 4000), (1, 1)), (512, 512), (700, 700))
