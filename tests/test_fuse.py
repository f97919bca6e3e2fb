"""Label layers -> one layer."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from casebook.labels import IGNORE
from rayters.annotators.dawid_skene import add_patterns, count_patterns
from rayters.annotators.fuse import dawid_skene, majority_vote, mean_labels, spatial_staple, staple

DATA = Path(__file__).parents[2] / "shared/data"
REFERENCE = DATA / "reference/staple_simpleitk.json"
LAYERS = arrays(np.uint8, (3, 4, 4), elements=st.sampled_from([0, 1, 2, IGNORE]))


def column(*labels: int) -> np.ndarray:
    """One pixel, one annotator per argument."""
    return np.array(labels, dtype=np.uint8).reshape(-1, 1, 1)


def crowd(seed: int = 0, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A disc and five annotators with independent errors: sensitivity, specificity as in RATES."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    truth = (y**2 + x**2 < (size / 4) ** 2).astype(np.uint8)
    flips = [rng.random(truth.shape) > np.where(truth == 1, se, sp) for se, sp in RATES]
    return truth, np.stack([truth ^ flip for flip in flips]).astype(np.uint8)


RATES = [(0.95, 0.98), (0.9, 0.9), (0.7, 0.95), (0.6, 0.8), (0.85, 0.85)]


def test_the_majority_wins():
    assert majority_vote(column(1, 1, 0), classes=2).item() == 1


def test_a_tie_goes_to_the_lower_class():
    assert majority_vote(column(2, 1, 1, 2), classes=3).item() == 1
    assert majority_vote(column(0, 1), classes=2).item() == 0


def test_who_did_not_look_has_no_vote():
    assert majority_vote(column(IGNORE, IGNORE, 1), classes=2).item() == 1
    assert mean_labels(column(IGNORE, 0, 1), classes=2).ravel().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("fuse", [majority_vote, lambda x, classes: staple(x, classes=classes).layer])
def test_where_nobody_looked_nothing_is_known(fuse):
    assert fuse(column(IGNORE, IGNORE), classes=2).item() == IGNORE
    assert mean_labels(column(IGNORE, IGNORE), classes=2).ravel().tolist() == [0, 0]


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(ValueError, match=r"\[3\]"):
        majority_vote(column(0, 3), classes=3)


@settings(max_examples=25, deadline=None)
@given(LAYERS)
def test_an_annotator_who_looked_nowhere_changes_no_fusion(layers):
    more = np.concatenate([layers, np.full_like(layers[:1], IGNORE)])
    assert np.array_equal(majority_vote(layers, classes=3), majority_vote(more, classes=3))
    assert np.array_equal(mean_labels(layers, classes=3), mean_labels(more, classes=3))
    a, b = (staple(x, classes=3) for x in (layers, more))
    assert np.array_equal(a.layer, b.layer)
    a, b = (dawid_skene(x, classes=3).fuse(x) for x in (layers, more))
    assert np.allclose(a.posterior, b.posterior)


@settings(max_examples=25, deadline=None)
@given(LAYERS)
def test_the_order_of_the_annotators_does_not_matter(layers):
    back = layers[::-1]
    assert np.array_equal(majority_vote(layers, classes=3), majority_vote(back, classes=3))
    a, b = (dawid_skene(x, classes=3) for x in (layers, back))
    assert np.allclose(a.confusion, b.confusion[::-1], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(LAYERS)
def test_posteriors_sum_to_one_where_anybody_looked_and_confusions_over_what_is_written(layers):
    for fused in (
        staple(layers, classes=3),
        dawid_skene(layers, classes=3).fuse(layers),
        spatial_staple(layers, classes=3, window_px=3),
    ):
        assert np.allclose(fused.posterior.sum(axis=0), (layers != IGNORE).any(axis=0), atol=1e-5)
        assert np.allclose(fused.confusion.sum(axis=1), 1, atol=1e-5)
        assert ((fused.layer == IGNORE) == (layers == IGNORE).all(axis=0)).all()


def test_dawid_skene_recovers_planted_confusions():
    truth, layers = crowd()
    model = dawid_skene(layers, classes=2)
    rates = [(c[1, 1], c[0, 0]) for c in model.confusion]
    assert np.allclose(rates, RATES, atol=0.03)
    assert (model.fuse(layers).layer == truth).mean() > 0.99


def test_a_transposed_confusion_would_not_pass():
    _, layers = crowd()
    rates = [
        (c.T[1, 0], c.T[0, 1]) for c in dawid_skene(layers, classes=2).confusion
    ]  # P(1|0), P(0|1) the wrong way round
    assert not np.allclose(rates, [(1 - sp, 1 - se) for se, sp in RATES], atol=0.03)


def test_the_likelihood_of_em_never_falls():
    history = dawid_skene(crowd()[1], classes=2).log_likelihood
    assert len(history) > 3
    assert all(after >= before - 1e-9 * abs(before) for before, after in pairwise(history))


def test_histograms_of_cases_add_up_to_that_of_the_cohort():
    layers = crowd(size=40)[1]
    whole = count_patterns(layers)
    parts = add_patterns([count_patterns(layers[:, :7]), count_patterns(layers[:, 7:])])
    assert np.array_equal(whole.patterns, parts.patterns)
    assert np.array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == 1600
    assert np.array_equal((count_patterns(layers[:, :7]) + count_patterns(layers[:, 7:])).counts, whole.counts)


def test_missing_votes_are_no_votes_for_background():
    _, layers = crowd()
    layers[3:, ::2] = IGNORE
    model = dawid_skene(layers, classes=2)
    assert np.allclose([(c[1, 1], c[0, 0]) for c in model.confusion], RATES, atol=0.05)
    assert np.allclose([(c[1, 1], c[0, 0]) for c in staple(layers, classes=2).confusion], RATES, atol=0.05)


def test_our_em_with_a_fixed_prior_is_simpleitks_staple():
    layers = crowd(size=48)[1]
    prior = np.array([1 - layers.mean(), layers.mean()])
    ours = dawid_skene(layers, classes=2, prior=prior, tolerance=0, reliability=0.99999).fuse(layers)
    theirs = staple(layers, classes=2)
    assert np.allclose(ours.posterior, theirs.posterior, atol=1e-4)
    assert np.allclose(ours.confusion, theirs.confusion, atol=1e-4)


def test_multi_label_staple_knows_who_confuses_what_with_what():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3, dtype=np.uint8), 32 * 96 // 3).reshape(32, 96)
    noisy = [np.where(rng.random(truth.shape) < 0.9, truth, rng.integers(0, 3, truth.shape)) for _ in range(3)]
    biased = np.where(
        (truth == 1) & (rng.random(truth.shape) < 0.4), 2, truth
    )  # writes 2 where 1 is true, never the reverse
    fused = staple(np.stack([*noisy, biased]).astype(np.uint8), classes=3)
    assert fused.confusion[3, 2, 1] == pytest.approx(0.4, abs=0.05)
    assert fused.confusion[3, 1, 2] < 0.02
    assert (fused.layer == truth).mean() > 0.98


def test_multi_label_staple_agrees_with_simpleitks_own_labels():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, (20, 20))
    layers = np.stack(
        [np.where(rng.random(truth.shape) < p, truth, rng.integers(0, 4, truth.shape)) for p in (0.9, 0.8, 0.7)]
    ).astype(np.uint8)
    theirs = sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE([sitk.GetImageFromArray(x) for x in layers], IGNORE))
    decided = theirs != IGNORE
    assert decided.mean() > 0.9
    assert (staple(layers, classes=4).layer == theirs)[decided].mean() > 0.99


def test_staple_of_blank_layers_is_blank():
    fused = staple(np.zeros((3, 5, 5), dtype=np.uint8), classes=2)
    assert not fused.layer.any()
    assert np.isfinite(fused.confusion).all()


def test_a_margin_keeps_a_large_background_from_inflating_the_specificity():
    _, layers = crowd()
    padded = np.pad(layers[:, 24:72, 24:72], ((0, 0), (500, 500), (500, 500)))
    assert staple(padded, classes=2).confusion[3, 0, 0] > 0.99
    cropped = staple(padded, classes=2, margin_px=0)
    assert cropped.confusion[3, 0, 0] == pytest.approx(0.8, abs=0.1)
    assert cropped.layer.shape == padded.shape[1:]


def test_spatial_staple_sees_that_an_annotator_is_careless_on_one_side_only():
    rng = np.random.default_rng(0)
    truth = np.zeros((64, 128), dtype=np.uint8)
    truth[:, np.arange(128) // 6 % 2 == 0] = 1
    left = np.arange(128) < 64
    careless = [rng.random((64, 128)) < np.where(side, 0.45, 0.02) for side in (left, left, ~left, ~left, left)]
    layers = np.stack([truth ^ c for c in careless]).astype(np.uint8)
    wrong = {f.__name__: (f(layers, classes=2).layer != truth).mean() for f in (staple, spatial_staple)}
    assert wrong["spatial_staple"] < 0.2 * wrong["staple"]


def layers_of(case: str, raters: list[str]) -> np.ndarray:
    folder = DATA / case.removeprefix("A-").split("#")[0]
    if (folder / f"{raters[0]}.png").exists():
        from PIL import Image

        return np.stack([np.asarray(Image.open(folder / f"{r}.png")) > 0 for r in raters]).astype(np.uint8)
    import nibabel

    return np.stack([np.asarray(nibabel.load(folder / f"{r}.nii.gz").dataobj) > 0 for r in raters]).astype(np.uint8)


@pytest.mark.skipif(not REFERENCE.exists(), reason="../shared/data/reference is not here")
def test_staple_of_real_annotators_is_the_published_one():
    cases = json.loads(REFERENCE.read_text())["cases"]
    chosen = [name for name in cases if "bubil/d4" in name or "lidc" in name][::12]
    assert len(chosen) >= 5
    for name in chosen:
        expected = cases[name]
        layers = layers_of(name, expected["raters"])
        fused = staple(layers, classes=2)
        assert np.allclose(fused.confusion[:, 1, 1], expected["sensitivity"], atol=1e-5), name
        assert np.allclose(fused.confusion[:, 0, 0], expected["specificity"], atol=1e-5), name
        assert fused.posterior[1].sum() == pytest.approx(expected["sum_probability"], rel=1e-4)
