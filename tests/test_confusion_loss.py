"""What the losses of annotator confusion promise, on literals."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from casebook import IGNORE
from rayters.methods.confusion_loss import (
    annotator_nll,
    believed_trace,
    count_joint,
    inactive_pull,
    plain_trace,
    shared_truth_nll,
    written_probability,
)

SHARED = Path(__file__).parents[2] / "shared"
IDENTITY = torch.eye(2)
SWAP = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
GUESS = torch.full((2, 2), 0.5)
SURE = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])  # (B=1, K=2, N=3): the truth is 0, 1, 0
TRUTH = torch.tensor([[[0, 1, 0]]])  # (B=1, A=1, N=3)


def log(probability: Tensor) -> Tensor:
    return probability.clamp_min(1e-12).log()


def everywhere(*confusions: Tensor, pixels: int = 3) -> Tensor:
    """(1, A, K, K, N) logarithms of the same confusion at each pixel."""
    return log(torch.stack(confusions)[None, ..., None].expand(-1, -1, -1, -1, pixels))


def test_a_perfect_annotator_of_a_certain_network_costs_nothing() -> None:
    assert annotator_nll(log(SURE), everywhere(IDENTITY), TRUTH) == pytest.approx([0.0], abs=1e-6)


def test_a_guessing_annotator_costs_log_two_whatever_was_written() -> None:
    assert annotator_nll(log(SURE), everywhere(GUESS), TRUTH) == pytest.approx([math.log(2)])
    assert annotator_nll(log(SURE), everywhere(GUESS), 1 - TRUTH) == pytest.approx([math.log(2)])


def test_a_swap_is_the_annotators_and_not_the_networks() -> None:
    assert annotator_nll(log(SURE), everywhere(SWAP), 1 - TRUTH) == pytest.approx([0.0], abs=1e-6)


def test_rows_are_what_is_written_and_columns_the_truth() -> None:
    misses = torch.tensor([[1.0, 0.3], [0.0, 0.7]])  # writes 0 for three of ten pixels whose truth is 1
    assert annotator_nll(log(SURE), everywhere(misses), TRUTH) == pytest.approx([-math.log(0.7) / 3])
    invents = torch.tensor([[0.6, 0.0], [0.4, 1.0]])
    assert annotator_nll(log(SURE), everywhere(invents), TRUTH) == pytest.approx([-math.log(0.6) * 2 / 3])


def test_labels_that_nobody_wrote_do_not_count() -> None:
    labels = torch.tensor([[[0, 1, IGNORE]]])
    misses = torch.tensor([[1.0, 0.3], [0.0, 0.7]])
    assert annotator_nll(log(SURE), everywhere(misses), labels) == pytest.approx([-math.log(0.7) / 2])
    nothing = torch.full_like(labels, IGNORE)
    for loss in (annotator_nll, shared_truth_nll):
        assert loss(log(SURE), everywhere(misses), nothing) == pytest.approx([0.0])


@pytest.mark.parametrize("loss", [annotator_nll, shared_truth_nll])
def test_a_missing_annotator_leaves_the_gradient_of_the_others_as_it_is(loss: object) -> None:
    torch.manual_seed(0)
    logits, scores = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 3, 3, 5, requires_grad=True)
    labels = torch.randint(3, (2, 3, 5))
    labels[:, 1] = IGNORE
    keep = [0, 2]

    def gradients(who: list[int]) -> tuple[Tensor, ...]:
        value = loss(logits.log_softmax(1), scores.log_softmax(2)[:, who], labels[:, who]).sum()  # type: ignore[operator]
        return torch.autograd.grad(value, (logits, scores))

    for with_missing, dropped in zip(gradients([0, 1, 2]), gradients(keep), strict=True):
        assert torch.allclose(with_missing, dropped, atol=1e-7)


def test_one_annotator_shares_the_truth_with_nobody() -> None:
    torch.manual_seed(1)
    log_p, log_a, labels = (
        torch.randn(2, 3, 4).log_softmax(1),
        torch.randn(2, 1, 3, 3, 4).log_softmax(2),
        torch.randint(3, (2, 1, 4)),
    )
    assert torch.allclose(shared_truth_nll(log_p, log_a, labels), annotator_nll(log_p, log_a, labels))


def test_annotators_who_share_a_truth_are_explained_together() -> None:
    undecided, half = log(torch.full((1, 2, 1), 0.5)), torch.tensor([[[1], [1]]])
    confusions = everywhere(torch.tensor([[0.9, 0.1], [0.1, 0.9]]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]), pixels=1)
    together = -math.log(0.5 * 0.1**2 + 0.5 * 0.9**2) / 2
    assert shared_truth_nll(undecided, confusions, half) == pytest.approx([together])
    assert annotator_nll(undecided, confusions, half) == pytest.approx([math.log(2)])


def test_the_trace_is_one_for_the_perfect_and_one_over_two_for_the_guessing() -> None:
    assert believed_trace(SURE, everywhere(IDENTITY), TRUTH) == pytest.approx([1.0])
    assert believed_trace(SURE, everywhere(GUESS), TRUTH) == pytest.approx([0.5])
    assert plain_trace(everywhere(IDENTITY), TRUTH) == pytest.approx([2.0])
    assert plain_trace(everywhere(SWAP), TRUTH) == pytest.approx([0.0], abs=1e-6)


def test_lowering_the_trace_lowers_the_diagonal() -> None:
    scores = torch.zeros(1, 1, 2, 2, 3, requires_grad=True)
    for trace in (plain_trace(scores.log_softmax(2), TRUTH), believed_trace(SURE, scores.log_softmax(2), TRUTH)):
        (gradient,) = torch.autograd.grad(trace.sum(), scores, retain_graph=True)
        assert (gradient.diagonal(dim1=2, dim2=3).sum() > 0).all()


def test_only_columns_that_are_not_believed_are_pulled() -> None:
    scores = torch.zeros(1, 1, 2, 2, 3, requires_grad=True)
    pull = inactive_pull(SURE, scores.log_softmax(2), torch.tensor([[[0.9, 0.4], [0.1, 0.6]]]), TRUTH)
    (gradient,) = torch.autograd.grad(pull.sum(), scores)
    believed = SURE.unsqueeze(1).unsqueeze(1)  # (B, 1, 1, K over j, N)
    assert (gradient * believed == 0).all()
    assert (gradient * (1 - believed) != 0).any()


@settings(deadline=None)  # a busy machine is not a failure
@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_what_would_be_written_sums_to_one(classes: int, annotators: int, seed: int) -> None:
    torch.manual_seed(seed)
    log_p = torch.randn(2, classes, 5).log_softmax(1)
    log_a = torch.randn(2, annotators, classes, classes, 5).log_softmax(2)
    assert torch.allclose(written_probability(log_p, log_a).sum(2), torch.ones(2, annotators, 5), atol=1e-5)


def test_a_confusion_for_all_pixels_costs_as_much_as_its_copies() -> None:
    torch.manual_seed(2)
    log_p, labels = torch.randn(2, 3, 7).log_softmax(1), torch.randint(3, (2, 2, 7))
    one = torch.randn(2, 2, 3, 3, 1).log_softmax(2)
    copies = one.expand(-1, -1, -1, -1, 7)
    posterior, average = log_p.exp(), torch.randn(2, 3, 3).softmax(1)
    for loss in (
        lambda a: annotator_nll(log_p, a, labels),
        lambda a: shared_truth_nll(log_p, a, labels),
        lambda a: believed_trace(posterior, a, labels),
        lambda a: plain_trace(a, labels),
        lambda a: inactive_pull(posterior, a, average, labels),
    ):
        assert torch.allclose(loss(one), loss(copies))


def test_the_likelihood_is_that_of_the_paper() -> None:
    """Reference: the formula of equation 3 on the released code's own confusions, in float64."""
    file = SHARED / "data" / "reference" / "gcm_noisy_label_loss.json"
    if not file.exists():
        pytest.skip(f"no reference values at {file}")
    for case in json.loads(file.read_text())["cases"]:
        log_p = torch.tensor(case["logits"], dtype=torch.float64).log_softmax(1).flatten(2)
        classes = log_p.shape[1]
        raw = (
            torch.tensor(case["cm_raw"], dtype=torch.float64).movedim(0, 1).unflatten(2, (classes, classes)).flatten(4)
        )
        log_a = (raw / raw.sum(2, keepdim=True)).log()
        labels = torch.tensor(case["labels"]).long().movedim(0, 1).flatten(2)
        for a, expected in enumerate(case["nll_of_annotator_probabilities"]):
            assert annotator_nll(log_p, log_a[:, a : a + 1], labels[:, a : a + 1]).item() == pytest.approx(
                expected, rel=1e-6
            )


def test_confusions_are_counted_by_what_was_written_and_not_by_what_the_net_is_unsure_of() -> None:
    confusion = torch.tensor([[0.9, 0.3], [0.1, 0.7]])
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.8, 0.2])  # all that the net knows, of every pixel
    truth = torch.multinomial(p, 20_000, replacement=True, generator=generator)
    labels = torch.multinomial(confusion.T[truth], 1, generator=generator).view(1, 1, -1)
    log_p, log_a = p.log().view(1, 2, 1).expand(1, 2, 20_000), confusion.log().view(1, 1, 2, 2, 1)
    counts = count_joint(log_p, log_a, labels)[0]
    assert torch.allclose(counts / counts.sum(0), confusion, atol=0.02)
    absent = count_joint(log_p, log_a, torch.full_like(labels, IGNORE))[0]
    assert torch.allclose(absent / absent.sum(0), confusion, atol=1e-4)
    assert counts.sum().item() == pytest.approx(20_000, rel=1e-4) == absent.sum().item()
