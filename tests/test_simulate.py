"""The five simulated annotators and the sheets of digits they write on."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from casebook.labels import IGNORE
from rayters.annotators.digits import digit_sheets, enlarged_digits
from rayters.annotators.fuse import majority_vote
from rayters.annotators.simulate import FIVE, draw_all, five, swap_classes

MNIST = Path(__file__).parents[2] / "shared/data/mnist-annotators/t10k-images-idx3-ubyte.gz"


def dot() -> np.ndarray:
    mask = np.zeros((9, 9), dtype=np.uint8)
    mask[4, 4] = 1
    return mask


def test_a_dot_shows_each_style():
    good, over, under, wrong, blank = draw_all(dot())
    assert np.array_equal(good, dot())
    assert over.sum() == 25
    assert over[2:7, 2:7].all()
    assert under.sum() == 0
    assert wrong.sum() == 5  # a cross ...
    assert wrong[5:8, 7].all()  # ... 2 px further down, 3 px further right
    assert wrong[6, 6:9].all()
    assert blank.sum() == 0


def test_the_truth_is_left_as_it_was():
    truth = dot()
    draw_all(truth)[0][:] = 7
    assert np.array_equal(truth, dot())


def test_where_nobody_looked_nobody_writes():
    truth = dot()
    truth[:3] = IGNORE
    for layer in draw_all(truth):
        assert (layer[:3] == IGNORE).all()
        assert (layer[3:] != IGNORE).all()


def test_a_volume_is_drawn_slice_by_slice():
    volume = np.stack([dot(), np.zeros_like(dot()), dot()])
    for a, layer in enumerate(draw_all(volume)):
        assert np.array_equal(layer[0], draw_all(dot())[a])
        assert layer[1].sum() == 0


def test_among_several_classes_the_wrong_annotator_swaps_them_in_a_circle():
    truth = np.array([[0, 1, 2, 3, IGNORE]], dtype=np.uint8)
    assert swap_classes(truth, classes=4).tolist() == [[0, 2, 3, 1, IGNORE]]
    assert five(4)[3].draw(truth).tolist() == [[0, 2, 3, 1, IGNORE]]


@pytest.mark.skipif(not MNIST.exists(), reason="../shared/data/mnist-annotators is not here")
def test_on_mnist_the_rates_are_those_that_were_published_with_the_method():
    pixels = np.frombuffer(gzip.decompress(MNIST.read_bytes()), dtype=np.uint8, offset=16).reshape(-1, 28, 28)
    truth = (pixels[:3600] > 127).astype(np.uint8)
    layers = draw_all(truth)
    rates = [((layer[truth == 0] == 0).mean(), (layer[truth == 1] == 1).mean()) for layer in layers]
    assert np.allclose(rates, [(1, 1), (0.71, 1), (1, 0.30), (0.82, 0.45), (1, 0)], atol=0.01)
    vote = majority_vote(layers, classes=2)
    dice = 2 * (vote & truth).sum((1, 2)) / (vote.sum((1, 2)) + truth.sum((1, 2)))
    assert dice.mean() == pytest.approx(0.689, abs=0.001)


def test_digit_sheets_are_a_pure_function_of_the_seed():
    a, b, c = (digit_sheets(sheets=2, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(a.images, b.images)
    assert np.array_equal(a.labels, b.labels)
    assert not np.array_equal(a.images, c.images)


def test_digit_sheets_have_the_shapes_they_say():
    sheets = digit_sheets(sheets=3, rows=2, columns=4, channels=3)
    assert sheets.images.shape == (3, 3, 48, 96)
    assert sheets.labels.shape == (3, 5, 48, 96)
    assert sheets.reference.shape == (3, 48, 96)
    assert sheets.images.dtype == sheets.labels.dtype == sheets.reference.dtype == np.uint8
    assert sheets.annotators == tuple(annotator.name for annotator in FIVE)


def test_no_annotator_writes_into_the_next_cell():
    sheets = digit_sheets(sheets=1)
    cells = sheets.labels.reshape(5, 8, 24, 8, 24)
    assert cells[:, :, 0].max() == 0
    assert cells[..., 0].max() == 0
    assert np.array_equal(sheets.labels[:, 0], sheets.reference)


def test_the_vote_on_the_sheets_is_clearly_worse_than_the_truth():
    sheets = digit_sheets()
    vote = majority_vote(sheets.labels.swapaxes(0, 1), classes=2)
    dice = 2 * (vote & sheets.reference).sum() / (vote.sum() + sheets.reference.sum())
    assert 0.7 < dice < 0.85
    assert 0.1 < sheets.reference.mean() < 0.15


def test_too_many_sheets_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="1797"):
        digit_sheets(sheets=29)


@pytest.mark.parametrize(("glyph_px", "cell_px"), [(7, 24), (25, 24)])
def test_a_glyph_that_is_too_small_or_does_not_fit_its_cell_is_refused(glyph_px, cell_px):
    with pytest.raises(ValueError, match=f"{glyph_px} px in a cell of {cell_px} px"):
        enlarged_digits(glyph_px=glyph_px, cell_px=cell_px)
