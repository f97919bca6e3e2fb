"""Agreement between annotators."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from casebook.labels import IGNORE
from rayters.annotators.agreement import cohen_kappa, fleiss_kappa, pair_counts, pairwise_dice, suspicious_pairs


def noisy(annotators: int, classes: int, keep: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (30, 30))
    return np.stack(
        [
            np.where(rng.random(truth.shape) < keep, truth, rng.integers(0, classes, truth.shape))
            for _ in range(annotators)
        ]
    ).astype(np.uint8)


def test_two_squares_that_share_half_have_dice_one_half():
    layers = np.zeros((2, 4, 4), dtype=np.uint8)
    layers[0, :2], layers[1, 1:3] = 1, 1
    assert pairwise_dice(pair_counts(layers, classes=2))[0, 1] == 0.5


def test_everybody_agrees_with_himself_and_two_blanks_agree():
    layers = np.concatenate([noisy(2, 3, 0.5), np.zeros((2, 30, 30), dtype=np.uint8)])
    counts = pair_counts(layers, classes=3)
    assert np.allclose(np.diag(pairwise_dice(counts)), 1)
    assert np.allclose(np.diag(cohen_kappa(counts)), 1)
    assert pairwise_dice(counts)[2, 3] == 1


def test_cohens_kappa_is_scikit_learns():
    layers = noisy(3, 4, 0.6)
    kappa = cohen_kappa(pair_counts(layers, classes=4))
    assert kappa[0, 2] == pytest.approx(cohen_kappa_score(layers[0].ravel(), layers[2].ravel()))
    assert np.allclose(kappa, kappa.T)


def test_fleiss_kappa_of_the_example_in_his_paper():
    """Fleiss 1971, table 1: 30 patients, 6 psychiatrists, 5 categories, kappa = .430; here its first ten rows, computed
    by hand formula.
    """
    rows = np.array([[0, 0, 0, 6, 0], [0, 3, 0, 0, 3], [0, 1, 4, 0, 1], [0, 0, 0, 0, 6], [0, 3, 0, 3, 0]])
    layers = np.array([np.repeat(np.arange(5), row) for row in rows], dtype=np.uint8).T
    p_mean = np.mean(((rows**2).sum(1) - 6) / 30)
    p_chance = ((rows.sum(0) / 30) ** 2).sum()
    assert fleiss_kappa(layers, classes=5) == pytest.approx((p_mean - p_chance) / (1 - p_chance))


def test_guessing_annotators_agree_by_chance_only():
    assert abs(fleiss_kappa(noisy(5, 3, 0.0), classes=3)) < 0.05


def test_pixels_only_one_looked_at_do_not_count():
    layers = noisy(3, 3, 0.7)
    part = layers.copy()
    part[1:, :10] = IGNORE
    rest = layers[:, 10:]
    assert fleiss_kappa(part, classes=3) == pytest.approx(fleiss_kappa(rest, classes=3))
    assert np.allclose(cohen_kappa(pair_counts(part, classes=3))[1, 2], cohen_kappa(pair_counts(rest, classes=3))[1, 2])
    assert np.array_equal(pair_counts(part, classes=3)[0, 1], pair_counts(rest, classes=3)[0, 1])


def test_nothing_in_common_is_not_a_number():
    layers = np.array([[[0, IGNORE]], [[IGNORE, 1]]], dtype=np.uint8)
    counts = pair_counts(layers, classes=2)
    assert np.isnan(pairwise_dice(counts)[0, 1])
    assert np.isnan(cohen_kappa(counts)[0, 1])
    assert np.isnan(fleiss_kappa(layers, classes=2))


def test_the_copy_the_stranger_and_the_blank_are_pointed_out():
    honest = noisy(2, 2, 0.8)
    layers = np.concatenate([honest, honest[:1], noisy(1, 2, 1.0, seed=9), np.zeros((1, 30, 30), dtype=np.uint8)])
    found = {s.pair: s.reason for s in suspicious_pairs(pair_counts(layers, classes=2))}
    assert "identical" in found[0, 2]
    assert "chance" in found[0, 3]
    assert "marked nothing" in found[0, 4]
    assert (0, 1) not in found
