"""Whom the weighted vote trusts, and what the sentinel says; on cohorts that fit on a line."""

import math

import pytest
import torch
from torch import Tensor

from casebook import IGNORE
from rayters.methods import sentinel
from rayters.methods.trust import centrality, complete, count_pairs, kappa, settled, trust, weighted_votes

GOOD = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
OVER = [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]
UNDER = [0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
BLANK = [0] * 10
EVERYBODY = torch.ones(4, dtype=torch.bool)


def pairs_of(*who: list[int]) -> Tensor:
    labels = torch.tensor([who])
    return count_pairs(complete(labels, torch.zeros(1, len(who), 2, len(who[0]))))


def test_kappa_is_one_for_two_who_agree_and_nothing_for_the_blank() -> None:
    table = kappa(pairs_of(GOOD, GOOD, BLANK))
    assert table[0, 1] == pytest.approx(1.0)
    assert table[0, 2] == pytest.approx(0.0, abs=1e-6)
    assert torch.allclose(table, table.T)
    assert (table.diagonal() == 0).all()


def test_kappa_is_what_the_textbook_says() -> None:
    # agree on 8 of 10; by chance on .6 * .4 + .4 * .6 of the marginals (.6, .4) and (.4, .6) = .48
    table = kappa(pairs_of(GOOD, OVER))
    assert table[0, 1] == pytest.approx((0.8 - (0.6 * 0.4 + 0.4 * 0.6)) / (1 - 0.48))


def test_the_good_annotator_is_the_most_central() -> None:
    assert centrality(pairs_of(GOOD, OVER, UNDER, BLANK)).argmax() == 0


def test_the_weighted_vote_is_right_where_the_plain_vote_is_not() -> None:
    labels = torch.tensor([[GOOD, OVER, UNDER, BLANK]])
    plain = settled(weighted_votes(labels, torch.full((4,), 0.25), 2))
    weighted = settled(weighted_votes(labels, trust(pairs_of(GOOD, OVER, UNDER, BLANK), EVERYBODY, 4.0), 2))
    assert plain[0].tolist() != GOOD
    assert weighted[0].tolist() == GOOD


def test_without_sharpness_the_vote_is_a_plain_one() -> None:
    assert torch.allclose(trust(pairs_of(GOOD, OVER, UNDER, BLANK), EVERYBODY, 0.0), torch.full((4,), 0.25))


def test_who_has_not_looked_yet_is_not_trusted() -> None:
    looked = torch.tensor([True, True, False, True])
    assert trust(pairs_of(GOOD, OVER, GOOD, BLANK), looked, 4.0)[2] == 0


def test_before_anything_is_counted_all_are_alike() -> None:
    assert torch.allclose(
        trust(torch.zeros(3, 2, 3, 2), torch.zeros(3, dtype=torch.bool), 4.0), torch.full((3,), 1 / 3)
    )


def test_a_vote_is_open_until_half_of_all_trust_has_looked() -> None:
    labels = torch.tensor([[[1, 1, IGNORE], [IGNORE, 0, IGNORE], [IGNORE, 0, 1]]])
    votes = weighted_votes(labels, torch.tensor([0.5, 0.3, 0.2]), 2)
    assert torch.allclose(votes[0, 1], torch.tensor([0.5, 0.5, 0.2]))
    assert settled(votes)[0].tolist() == [IGNORE, 0, IGNORE]


def test_the_network_speaks_only_for_those_who_did_not_look() -> None:
    labels, written = torch.tensor([[[1, IGNORE]]]), torch.tensor([[[[0.9, 0.3], [0.1, 0.7]]]])
    assert torch.allclose(complete(labels, written), torch.tensor([[[[0.0, 0.3], [1.0, 0.7]]]]))


def confusion(true_negative: float, true_positive: float) -> Tensor:
    return torch.tensor([[true_negative, 1 - true_positive], [1 - true_negative, true_positive]])


def test_a_cohort_with_its_good_annotator_is_identifiable_and_without_is_not() -> None:
    careless = [confusion(0.71, 1), confusion(1, 0.3), confusion(0.82, 0.45), confusion(1, 0)]
    whole = torch.stack([confusion(1, 1), *careless])
    assert sentinel.dominance(whole) == pytest.approx(2 * 0.55 - 1, abs=1e-5)
    agreed = sentinel.Standing(agreement=0.9, drawn=1.0, surprise=0.2)
    assert sentinel.judge(agreed, average=whole).state == "fine"
    assert sentinel.judge(agreed, average=torch.stack(careless)).state == "not identifiable"


OPINION = torch.tensor([[1, 1, 0, 0, 0, 0, 0, IGNORE]])
NETS = {  # P(foreground) at each pixel: the first two are what the annotators drew
    "fine": [0.9, 0.8, 0.1, 0.1, 0.0, 0.0, 0.0, 0.5],
    "undertrained": [0.4, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.9],  # the frequency of the class, everywhere
    "astray": [0.01, 0.01, 0.99, 0.99, 0.99, 0.99, 0.99, 0.5],  # classes swapped
}


@pytest.mark.parametrize("state", NETS)
def test_an_undertrained_net_is_cautious_and_one_astray_is_sure(state: str) -> None:
    foreground = torch.tensor([NETS[state]])
    stands = sentinel.standing(sentinel.tally(torch.stack([1 - foreground, foreground], 1), OPINION))
    verdict = sentinel.judge(stands, average=confusion(0.9, 0.9).unsqueeze(0))
    assert verdict.state == state
    assert f"{stands.agreement:.2f}" in verdict.why


def test_a_method_without_confusions_has_no_style_to_adopt() -> None:
    swapped = sentinel.Standing(agreement=0.1, drawn=5.0, surprise=9.0)
    assert sentinel.judge(swapped, average=None).state == "undertrained"


def test_a_net_that_takes_a_blank_annotator_for_the_truth_is_astray_though_it_draws_nothing() -> None:
    posterior = torch.tensor([[[0.999] * 8, [0.001] * 8]])
    stands = sentinel.standing(sentinel.tally(posterior, OPINION))
    assert stands.drawn == 0
    assert sentinel.judge(stands, average=confusion(0.9, 0.9).unsqueeze(0)).state == "astray"


def test_an_untrained_net_is_given_time() -> None:
    nothing_yet = sentinel.Standing(agreement=0.0, drawn=0.0, surprise=2.0)
    assert sentinel.judge(nothing_yet, average=None, progress=0.1).state == "fine"


def test_tallies_add_up_over_batches_and_leave_out_what_nobody_saw() -> None:
    posterior = torch.tensor([[[0.5, 0.2, 0.2], [0.5, 0.8, 0.8]]])
    target = torch.tensor([[0, 1, IGNORE]])
    whole = sentinel.tally(posterior, target)
    assert torch.allclose(whole, sum(sentinel.tally(posterior[..., [i]], target[..., [i]]) for i in range(3)))
    stands = sentinel.standing(whole)
    assert stands.drawn == 1
    assert stands.surprise == pytest.approx(-math.log(0.5 * 0.8) / (2 * math.log(2)))


def test_overlaps_add_up_to_a_dice_of_the_foreground() -> None:
    predicted, target = torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 1, 1, IGNORE]])
    assert sentinel.overlap(predicted, target).tolist() == [4.0, 4.0]
    assert sentinel.overlap(torch.zeros_like(target), target).tolist() == [0.0, 2.0]
