"""Overlap, confusion error and calibration: everything that is a sum over pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from casebook.labels import IGNORE
from rayters.metrics.calibration import calibration
from rayters.metrics.confusion_error import (
    ConfusionCounts,
    confusion_rmse,
    count_confusion,
    reliability,
    reliability_rank_correlation,
    sum_estimate,
)
from rayters.metrics.overlap import dice, dice_per_annotator, dice_per_image, dice_pooled, iou

MAPS = arrays(np.uint8, (5, 5), elements=st.sampled_from([0, 1, 2, IGNORE]))


def blob(size: int) -> np.ndarray:
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:size, :size] = 1
    return mask


def test_dice_of_two_squares_by_hand():
    assert dice(blob(4), blob(8), classes=2).tolist() == [2 * 16 / (16 + 64)]
    assert iou(blob(4), blob(8), classes=2).tolist() == [16 / 64]


def test_empty_against_empty_is_one_and_empty_against_something_is_nothing():
    assert dice(blob(0), blob(0), classes=2).tolist() == [1]
    assert dice(blob(0), blob(5), classes=2).tolist() == [0]  # not .48, as with the background in the mean
    assert iou(blob(0), blob(0), classes=2).tolist() == [1]


@settings(max_examples=50, deadline=None)
@given(MAPS, MAPS)
def test_overlap_is_symmetric_and_leaves_its_input_alone(a, b):
    before = a.copy(), b.copy()
    assert np.array_equal(dice(a, b, classes=3), dice(b, a, classes=3))
    assert np.allclose(dice(a, b, classes=3), 2 * iou(a, b, classes=3) / (1 + iou(a, b, classes=3)))
    assert (dice(a, a, classes=3) == 1).all()
    assert np.array_equal(a, before[0])
    assert np.array_equal(b, before[1])


def test_what_is_written_under_ignore_does_not_matter():
    reference, prediction = blob(6), blob(4)
    reference[10:] = IGNORE
    other = prediction.copy()
    other[10:] = 1
    assert np.array_equal(dice(prediction, reference, classes=2), dice(other, reference, classes=2))


def test_per_image_and_pooled_differ_and_say_so():
    pairs = [(blob(8), blob(8)), (blob(0), blob(2))]
    assert dice_per_image(pairs, classes=2).ravel().tolist() == [1, 0]
    assert dice_pooled(pairs, classes=2).tolist() == [2 * 64 / (2 * 64 + 4)]


def test_each_annotator_is_compared_where_they_looked_and_who_looked_nowhere_has_no_dice():
    half, nobody = blob(4), np.full((32, 32), IGNORE, np.uint8)
    half[:, 2:] = IGNORE
    found = dice_per_annotator(blob(4), np.stack([blob(8), half, nobody, blob(0)]), classes=2)
    assert found.shape == (4, 1)
    assert found[[0, 1, 3], 0].tolist() == [2 * 16 / (16 + 64), 1, 0]
    assert np.isnan(found[2, 0])


def test_maps_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        dice(blob(3), blob(3)[1:], classes=2)


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """labels (6, 2, 8, 8), reference (6, 8, 8), some of each IGNORE."""
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 3, (6, 8, 8)).astype(np.uint8)
    reference[:, 0] = IGNORE
    labels = rng.integers(0, 3, (6, 2, 8, 8)).astype(np.uint8)
    labels[:, 1, :, 0] = IGNORE
    return labels, reference


def test_confusion_columns_belong_to_the_truth_and_sum_to_one():
    reference = np.array([[0, 0, 0, 0, 1, 1]], dtype=np.uint8)
    labels = np.array([[[0, 0, 0, 1, 1, 1]]], dtype=np.uint8)
    assert count_confusion(labels, reference, classes=2).confusion.tolist() == [[[0.75, 0], [0.25, 1]]]


def test_the_accumulator_equals_one_pass_over_everything():
    labels, reference = batch()
    parts = sum(
        (count_confusion(labels[i : i + 1], reference[i : i + 1], classes=3) for i in range(1, 6)),
        start=count_confusion(labels[:1], reference[:1], classes=3),
    )
    whole = count_confusion(labels, reference, classes=3)
    assert np.array_equal(parts.counts, whole.counts)
    direct = [((labels[:, 1] == 2) & (reference == 1)).sum() / ((labels[:, 1] != IGNORE) & (reference == 1)).sum()]
    assert whole.confusion[1, 2, 1] == pytest.approx(direct[0])


def test_the_estimate_is_averaged_over_the_pixels_of_the_true_class_only():
    reference = np.array([[0, 0, 1]], dtype=np.uint8)
    per_pixel = np.zeros((1, 1, 2, 2, 3))
    per_pixel[0, 0, 1, 1] = [0.0, 0.0, 0.8]  # whatever is estimated where the truth is 0 is not column 1's concern
    per_pixel[0, 0, 0, 0] = [0.9, 0.7, 0.0]
    found = sum_estimate(per_pixel, reference).confusion
    assert found[0, 1, 1] == pytest.approx(0.8)
    assert found[0, 0, 0] == pytest.approx(0.8)


@pytest.mark.parametrize("level", ["per pixel", "per patch"])
def test_the_summed_estimate_is_a_direct_mean_over_the_test_set_whatever_varies(level):
    rng, (_, reference) = np.random.default_rng(7), batch(7)
    shape = (6, 2, 3, 3, 8, 8) if level == "per pixel" else (6, 2, 3, 3)
    confusion = rng.dirichlet(np.ones(3), size=(6, 2, 3, *shape[4:]))  # (B, A, j, [S,] i): no two pixels alike
    confusion = np.moveaxis(confusion, -1, 2)
    assert confusion.shape == shape
    parts = [sum_estimate(confusion[i : i + 2], reference[i : i + 2]) for i in (0, 2, 4)]
    found = (parts[0] + parts[1] + parts[2]).confusion
    pixelwise = confusion if level == "per pixel" else np.broadcast_to(confusion[..., None, None], (6, 2, 3, 3, 8, 8))
    for j in range(3):
        here = reference == j
        direct = np.stack([pixelwise[:, a, :, j].swapaxes(0, 1)[:, here].mean(axis=1) for a in range(2)])
        assert np.allclose(found[:, :, j], direct)
    assert np.allclose(found.sum(axis=1), 1)


def test_a_global_a_patchwise_and_a_pixelwise_estimate_of_the_same_matrix_agree():
    _, reference = batch()
    matrix = np.array([[[0.8, 0.1, 0.2], [0.1, 0.7, 0.2], [0.1, 0.2, 0.6]]] * 2)
    patchwise = np.broadcast_to(matrix, (6, 2, 3, 3))
    pixelwise = np.broadcast_to(matrix[None, ..., None, None], (6, 2, 3, 3, 8, 8))
    for estimate in (matrix, patchwise, pixelwise):
        halves = sum_estimate(estimate if estimate.ndim == 3 else estimate[:2], reference[:2]) + sum_estimate(
            estimate if estimate.ndim == 3 else estimate[2:], reference[2:]
        )
        assert np.allclose(halves.confusion, matrix)


def test_rmse_is_zero_for_the_truth_and_large_for_its_transpose():
    true = np.array([[[0.9, 0.4], [0.1, 0.6]]])
    assert confusion_rmse(true, true) == 0
    assert confusion_rmse(true.swapaxes(1, 2), true) == pytest.approx(np.sqrt((0.3**2 + 0.3**2) / 4))


def test_a_class_that_never_occurred_is_left_out_of_the_error():
    counts = ConfusionCounts(counts=np.array([[[5, 0], [5, 0]]]))
    assert np.isnan(counts.confusion[0, :, 1]).all()
    assert confusion_rmse(np.array([[[0.5, 0.3], [0.5, 0.7]]]), counts.confusion) == 0


def test_reliability_ranks_annotators():
    def matrix(right: float) -> np.ndarray:
        return np.array([[right, 1 - right], [1 - right, right]])

    true = np.stack([matrix(r) for r in (0.9, 0.7, 0.5, 0.6)])
    estimated = np.stack([matrix(r) for r in (0.8, 0.75, 0.4, 0.6)])
    assert np.allclose(reliability(true), [0.9, 0.7, 0.5, 0.6])
    assert reliability_rank_correlation(estimated, true) == pytest.approx(1)
    assert reliability_rank_correlation(1 - estimated, true) == pytest.approx(-1)
    assert np.isnan(reliability_rank_correlation(np.stack([matrix(0.5)] * 4), true))


def test_a_calibrated_toy_has_no_calibration_error():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 200_000)
    reference = (rng.random(p.size) < p).astype(np.uint8)
    found = calibration(np.stack([1 - p, p]), reference)
    assert found.ece < 0.005
    assert found.brier == pytest.approx(2 / 6, abs=0.005)  # 2 E p(1-p)
    assert found.nll == pytest.approx(0.5, abs=0.005)  # E of the entropy of a uniform p


def test_an_overconfident_toy_has_the_error_of_its_overconfidence():
    reference = (np.arange(1000) % 10 < 7).astype(np.uint8)
    found = calibration(np.stack([np.full(1000, 0.0), np.full(1000, 1.0)]), reference)
    assert found.ece == pytest.approx(0.3)
    assert found.brier == pytest.approx(0.6)
    assert np.isfinite(found.nll)


def test_calibration_of_parts_adds_up_and_ignores_ignore():
    rng = np.random.default_rng(1)
    posterior = rng.dirichlet(np.ones(3), (20, 20)).transpose(2, 0, 1)
    reference = rng.integers(0, 3, (20, 20)).astype(np.uint8)
    reference[5] = IGNORE
    whole = calibration(posterior, reference)
    parts = calibration(posterior[:, :7], reference[:7]) + calibration(posterior[:, 7:], reference[7:])
    assert parts.ece == pytest.approx(whole.ece)
    assert parts.brier == pytest.approx(whole.brier)
    assert parts.nll == pytest.approx(whole.nll)
    assert whole.pixels.sum() == 380
