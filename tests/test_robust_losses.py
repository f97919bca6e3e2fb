"""Robust losses against the released code's figures, and what soft targets do to them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rayters.methods import robust_losses as rl

REFERENCE = Path(__file__).parents[2] / "shared/data/reference/robust_losses_apl.json"

PUBLISHED = {
    "CE": rl.ce,
    "RCE": rl.rce,
    "SCE(alpha=0.1,beta=1.0)": rl.sce,
    "NCE": rl.nce,
    "GCE(q=0.7)": rl.gce,
    "MAE": rl.mae,
    "NFL(gamma=0.5)": rl.nfl,
    "NCE+RCE(1,1)": lambda p, q: rl.nce(p, q) + rl.rce(p, q),
    "NCE+MAE(1,1)": lambda p, q: rl.nce(p, q) + rl.mae(p, q),
    "NFL+RCE(1,1,gamma=0.5)": lambda p, q: rl.nfl(p, q) + rl.rce(p, q),
    "NFL+MAE(1,1,gamma=0.5)": lambda p, q: rl.nfl(p, q) + rl.mae(p, q),
}
SOFT = {"nce": rl.nce, "nfl": rl.nfl, "mae": rl.mae, "rce": rl.rce}


@pytest.mark.skipif(not REFERENCE.exists(), reason="../shared/data/reference is not here")
@pytest.mark.parametrize("name", PUBLISHED)
def test_values_and_gradients_are_the_released_codes(name):
    for case in json.loads(REFERENCE.read_text())["cases"]:
        logits = torch.tensor(case["logits"], dtype=torch.float64)[..., None].requires_grad_()
        target = torch.nn.functional.one_hot(torch.tensor(case["labels"]), case["num_classes"]).double()[..., None]
        loss = rl.per_patch(PUBLISHED[name](logits.log_softmax(1), target), target).mean()
        loss.backward()
        expected = case["values"][name]
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
        assert np.allclose(logits.grad[0, :, 0], expected["grad_row0"], rtol=1e-4, atol=1e-7)
        assert logits.grad.norm().item() == pytest.approx(expected["grad_l2"], rel=1e-4)


def binary(p: Tensor) -> Tensor:
    """log_p (N, 2, 1) of foreground probabilities p (N,)."""
    return torch.stack([1 - p, p], dim=1).log()[..., None]


def minimiser(loss, q: float) -> float:
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    target = torch.tensor([1 - q, q], dtype=torch.float64).view(1, 2, 1).expand(len(p), 2, 1)
    return p[loss(binary(p), target)[:, 0].argmin()].item()


@pytest.mark.parametrize("name", SOFT)
def test_confidence_weighted_losses_want_certainty_and_proper_ones_the_target_itself(name):
    assert minimiser(SOFT[name], 0.7) > 0.99
    assert minimiser(SOFT[name], 0.3) < 0.01
    assert minimiser(lambda p, q: SOFT[name](p, q, variant="proper"), 0.7) == pytest.approx(0.7, abs=0.002)


def test_gce_and_bce_lie_where_the_notes_say():
    assert minimiser(rl.gce, 0.7) == pytest.approx(0.944, abs=0.003)
    assert minimiser(rl.ce, 0.7) == pytest.approx(0.7, abs=0.002)


@pytest.mark.parametrize("name", SOFT)
def test_a_coin_flip_has_no_gradient_when_confidence_weighted(name):
    logits = torch.tensor([[0.3, -0.4]], dtype=torch.float64)[..., None].requires_grad_()
    target = torch.full((1, 2, 1), 0.5, dtype=torch.float64)
    value = SOFT[name](logits.log_softmax(1), target)  # NFL's factors differ between the classes, but they cancel
    assert torch.autograd.grad(value.sum(), logits)[0].abs().max() < 1e-12


@pytest.mark.parametrize("name", SOFT)
def test_both_variants_are_one_loss_on_hard_targets(name):
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64).log_softmax(1)
    hard = torch.nn.functional.one_hot(torch.randint(3, (4, 5), generator=generator), 3).movedim(-1, 1).double()
    assert torch.allclose(SOFT[name](log_p, hard), SOFT[name](log_p, hard, variant="proper"), rtol=1e-4)


@pytest.mark.parametrize("loss", [rl.mae, rl.rce])
def test_normalised_over_all_labels_mae_and_rce_are_themselves_under_another_weight(loss):
    """So Ma et al.'s NMAE and NRCE need no functions of their own."""
    log_p = torch.randn(6, 4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(1)
    labels = torch.eye(4, dtype=torch.float64).view(4, 1, 4, 1).expand(-1, 6, -1, -1)
    everything = sum(loss(log_p, label) for label in labels)
    assert torch.allclose(everything, torch.full_like(everything, 3 * (1 if loss is rl.mae else -rl.LOG_ZERO)))


@pytest.mark.parametrize("loss", [*PUBLISHED.values(), rl.nr_dice, rl.soft_dice])
@pytest.mark.parametrize("variant", ["soft", "hard", "none"])
def test_losses_and_gradients_are_finite_at_absurd_logits_and_without_a_target(loss, variant):
    logits = torch.tensor([[80.0, -80.0, 0.0], [-80.0, 80.0, 0.0]])[None].requires_grad_()
    foreground = {"soft": [0.3, 0.3, 0.5], "hard": [1.0, 1.0, 0.0], "none": [0.0, 0.0, 0.0]}[variant]
    q = torch.tensor(foreground)
    target = torch.stack([1 - q, q])[None] if variant != "none" else torch.zeros(1, 2, 3)
    value = loss(logits.log_softmax(1), target).sum()
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_pixels_without_a_target_change_nothing():
    generator = torch.Generator().manual_seed(1)
    log_p = torch.randn(1, 2, 6, generator=generator).log_softmax(1)
    target = torch.rand(1, 1, 6, generator=generator)
    target = torch.cat([1 - target, target], dim=1)
    partial = target.clone()
    partial[..., 4:] = 0
    for loss in PUBLISHED.values():
        whole = rl.per_patch(loss(log_p[..., :4], target[..., :4]), target[..., :4])
        assert torch.allclose(rl.per_patch(loss(log_p, partial), partial), whole)
    nu = torch.tensor(0.0)
    assert torch.allclose(rl.t_loss(log_p, partial, nu), rl.t_loss(log_p[..., :4], target[..., :4], nu))
    assert torch.allclose(rl.nr_dice(log_p, partial), rl.nr_dice(log_p[..., :4], target[..., :4]))


def test_the_mean_over_pixels_is_taken_and_not_the_sum():
    log_p = torch.randn(2, 2, 4, 4).log_softmax(1)
    target = torch.zeros(2, 2, 4, 4)
    target[:, 0] = 1
    value = rl.per_patch(rl.ce(log_p, target), target)
    assert torch.allclose(value, -log_p[:, 0].mean((1, 2)))


def test_few_degrees_of_freedom_forgive_a_gross_error():
    """The share that the worst pixel has in the gradient falls when half of the patch is labelled wrongly and nu is small."""
    log_p = torch.zeros(1, 2, 100).log_softmax(1)
    target = torch.zeros(1, 2, 100)
    target[:, 1] = 1
    few, many = (rl.t_loss(log_p, target, torch.tensor(v)) for v in (0.0, 8.0))
    assert few < many


def test_the_t_loss_is_the_likelihood_of_scipys_multivariate_t():
    from scipy.stats import multivariate_t

    log_p = torch.randn(1, 2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(1)
    target = torch.zeros(1, 2, 7, dtype=torch.float64)
    target[:, 1] = 1
    nu = np.exp(0.5) + 1e-3
    error = (log_p.exp() - target)[0, 1].numpy()
    expected = -multivariate_t.logpdf(error, np.zeros(7), np.eye(7), df=nu) / 7
    assert rl.t_loss(log_p, target, torch.tensor(0.5, dtype=torch.float64)).item() == pytest.approx(expected)
