"""Generators of label noise."""

import numpy as np
import pytest

from casebook.labels import IGNORE
from rayters.annotators.noise import DiscNoise, MarkovBoundary, Noise, SuperpixelGuided, corrupt

ALL = (SuperpixelGuided(), DiscNoise(), MarkovBoundary())


def disc(radius: int = 16, size: int = 80) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    return (y**2 + x**2 < radius**2).astype(np.uint8)


def area(noise: Noise, seeds: int = 12) -> float:
    """Mean foreground of noisy discs relative to the clean one."""
    drawn = [noise.draw(disc(), np.random.default_rng(seed)).sum() for seed in range(seeds)]
    return float(np.mean(drawn) / disc().sum())


@pytest.mark.parametrize("noise", ALL, ids=lambda n: type(n).__name__)
def test_the_same_seed_spoils_alike_and_another_seed_otherwise(noise):
    truths = [disc(), disc(10), disc(20)]
    a, b, c = (corrupt(truths, noise, share=1.0, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(a.labels, b.labels, strict=True))
    assert any(not np.array_equal(x, y) for x, y in zip(a.labels, c.labels, strict=True))
    assert np.array_equal(truths[0], disc())


@pytest.mark.parametrize("noise", ALL, ids=lambda n: type(n).__name__)
def test_so_many_pictures_are_spoilt_and_the_rest_is_clean(noise):
    found = corrupt([disc()] * 10, noise, share=0.3, seed=0)
    assert found.noisy.sum() == 3
    changed = [not np.array_equal(labels, disc()) for labels in found.labels]
    assert changed == found.noisy.tolist()
    more = corrupt([disc()] * 10, noise, share=0.7, seed=0)
    assert (more.noisy >= found.noisy).all()


@pytest.mark.parametrize("noise", ALL, ids=lambda n: type(n).__name__)
def test_noise_on_volumes_empty_masks_and_ignore(noise):
    volume = np.stack([disc(), disc(0), disc(8)])
    volume[0, :5] = IGNORE
    drawn = noise.draw(volume, np.random.default_rng(0))
    assert ((drawn == IGNORE) == (volume == IGNORE)).all()
    assert set(np.unique(drawn)) <= {0, 1, IGNORE}
    assert noise.draw(disc(0), np.random.default_rng(0)).sum() == 0


@pytest.mark.parametrize("share", [0.5, 0.7])
@pytest.mark.parametrize("bias", ["none", "grow", "shrink"])
def test_superpixel_guided_noise_changes_the_share_it_promises(share, bias):
    for seed in range(6):
        drawn = SuperpixelGuided(share=share, bias=bias).draw(disc(), np.random.default_rng(seed))
        assert (drawn != disc()).sum() / disc().sum() == pytest.approx(share, abs=0.12)


def test_a_bias_has_its_direction_and_its_absence_has_none():
    assert area(SuperpixelGuided(bias="grow")) == pytest.approx(1.5, abs=0.1)
    assert area(SuperpixelGuided(bias="shrink")) == pytest.approx(0.5, abs=0.1)
    assert area(DiscNoise(bias="grow")) > 1.5
    assert area(DiscNoise(bias="shrink")) < 0.6
    assert area(MarkovBoundary(expand=0.8)) > 1.2
    assert area(MarkovBoundary(expand=0.2)) < 0.85
    assert area(MarkovBoundary(expand=0.5)) == pytest.approx(1.0, abs=0.12)


def test_disc_noise_grows_by_the_radius():
    drawn = DiscNoise(radius_px=(6, 6), edge_sd_px=0.0, bias="grow").draw(disc(16), np.random.default_rng(0))
    assert np.sqrt(drawn.sum() / np.pi) == pytest.approx(22, abs=0.5)


def test_markov_noise_stays_near_the_boundary():
    drawn = MarkovBoundary(steps=20).draw(disc(16), np.random.default_rng(0))
    assert (drawn[disc(8) == 1] == 1).all()
    assert not drawn[disc(26) == 0].any()
    assert (drawn != disc(16)).any()
