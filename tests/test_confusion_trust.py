"""Whom the weighted vote trusts, and what the sentinel says; on cohorts that fit on a line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from casebook import IGNORE
from rayters.methods import sentinel
from rayters.methods.targets import one_hots
from rayters.methods.trust import (
    agreement,
    centrality,
    complete,
    count_pairs,
    kappa,
    settled,
    trust,
    weighted_votes,
)
from rayters.networks.team_sum import team_sum

GOOD = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
OVER = [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]
UNDER = [0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
BLANK = [0] * 10
EVERYBODY = torch.ones(4, dtype=torch.bool)


def pairs_of(*who: list[int]) -> Tensor:
    written = one_hots(torch.tensor([who]), 2)
    return count_pairs(written, written)


def agreements(*who: list[int]) -> Tensor:
    pairs = pairs_of(*who)
    return agreement(pairs, torch.zeros_like(pairs))


def test_kappa_is_one_for_two_who_agree_and_nothing_for_the_blank() -> None:
    table = kappa(pairs_of(GOOD, GOOD, BLANK))
    assert table[0, 1] == pytest.approx(1.0)
    assert table[0, 2] == pytest.approx(0.0, abs=1e-6)
    assert torch.allclose(table, table.T)
    assert (agreements(GOOD, GOOD, BLANK).diagonal() == 0).all()


def test_kappa_is_what_the_textbook_says() -> None:
    # agree on 8 of 10; by chance on .6 * .4 + .4 * .6 of the marginals (.6, .4) and (.4, .6) = .48
    table = kappa(pairs_of(GOOD, OVER))
    assert table[0, 1] == pytest.approx((0.8 - (0.6 * 0.4 + 0.4 * 0.6)) / (1 - 0.48))


def test_the_good_annotator_is_the_most_central() -> None:
    assert centrality(agreements(GOOD, OVER, UNDER, BLANK)).argmax() == 0


def test_the_weighted_vote_is_right_where_the_plain_vote_is_not() -> None:
    labels = torch.tensor([[GOOD, OVER, UNDER, BLANK]])
    plain = settled(weighted_votes(labels, torch.full((4,), 0.25), 2))
    weighted = settled(weighted_votes(labels, trust(agreements(GOOD, OVER, UNDER, BLANK), EVERYBODY, 4.0), 2))
    assert plain[0].tolist() != GOOD
    assert weighted[0].tolist() == GOOD


def test_without_sharpness_the_vote_is_a_plain_one() -> None:
    assert torch.allclose(trust(agreements(GOOD, OVER, UNDER, BLANK), EVERYBODY, 0.0), torch.full((4,), 0.25))


def test_who_has_not_looked_yet_is_not_trusted() -> None:
    looked = torch.tensor([True, True, False, True])
    assert trust(agreements(GOOD, OVER, GOOD, BLANK), looked, 4.0)[2] == 0


def test_before_anything_is_counted_all_are_alike() -> None:
    assert torch.allclose(trust(torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool), 4.0), torch.full((3,), 1 / 3))


def test_a_vote_is_open_until_half_of_all_trust_has_looked() -> None:
    labels = torch.tensor([[[1, 1, IGNORE], [IGNORE, 0, IGNORE], [IGNORE, 0, 1]]])
    votes = weighted_votes(labels, torch.tensor([0.4, 0.35, 0.25]), 2)
    assert torch.allclose(votes[0, 1], torch.tensor([0.4, 0.4, 0.25]))
    assert settled(votes)[0].tolist() == [IGNORE, 0, IGNORE]
    assert settled(votes, quorum=0)[0].tolist() == [1, 0, 1]


def test_two_who_are_trusted_alike_settle_only_what_they_agree_on() -> None:
    votes = weighted_votes(torch.tensor([[[1, 1, 0], [1, 0, 0]]]), torch.tensor([0.5, 0.5]), 2)
    assert settled(votes)[0].tolist() == [1, IGNORE, 0]


def test_who_never_looked_at_the_same_pixel_are_compared_through_voices_and_the_careful_are_borne_out() -> None:
    """Three annotators flip pixels at random, each looks at a third of them; two thirds of the foreground can be seen in the image."""
    generator, flips, third = torch.Generator().manual_seed(0), (0.02, 0.1, 0.2), 20_000
    truth = (torch.rand(3 * third, generator=generator) < 0.3).long()
    visible = (truth == 1) & (torch.rand(3 * third, generator=generator) < 2 / 3)
    foreground = torch.where(visible, 1.0, 0.125)  # P(truth | image)
    labels = torch.full((1, 3, 3 * third), IGNORE)
    for a, rate in enumerate(flips):
        own = slice(a * third, (a + 1) * third)
        labels[0, a, own] = (truth[own] + (torch.rand(third, generator=generator) < rate).long()) % 2
    says = torch.stack([foreground * (1 - 2 * rate) + rate for rate in flips])  # what a perfect net says of each
    written, voices = one_hots(labels, 2), torch.stack([1 - says, says], 1).unsqueeze(0)
    pairs, heard = count_pairs(written, written), count_pairs(written, voices)
    assert pairs.sum((1, 3)).fill_diagonal_(0).sum() == 0  # no two ever met
    careful, middling, careless = trust(agreement(pairs, heard), torch.ones(3, dtype=torch.bool), 4.0).tolist()
    assert careful > middling > careless


def test_a_faint_voice_does_not_count_against_those_who_are_compared_with_it() -> None:
    labels = torch.tensor([[GOOD * 2]])
    apart = torch.full((1, 2, 20), IGNORE)
    apart[0, 0, :10], apart[0, 1, 10:] = labels[0, 0, :10], labels[0, 0, 10:]
    written = one_hots(apart, 2)
    for clearness in (1.0, 0.5):
        says = clearness * labels[0, 0] + (1 - clearness) * 0.4  # of the same frequency, ever less sure
        voices = torch.stack([1 - says, says]).expand(1, 2, 2, 20)
        assert agreement(count_pairs(written, written), count_pairs(written, voices))[0, 1].item() == pytest.approx(
            1, abs=1e-5
        )


def test_where_two_did_meet_nobody_speaks_for_them() -> None:
    pairs = pairs_of(GOOD, OVER)
    assert torch.equal(agreement(pairs, torch.rand(2, 2, 2, 2)), agreement(pairs, torch.zeros(2, 2, 2, 2)))


def test_the_network_speaks_only_for_those_who_did_not_look() -> None:
    labels, written = torch.tensor([[[1, IGNORE]]]), torch.tensor([[[[0.9, 0.3], [0.1, 0.7]]]])
    assert torch.allclose(complete(labels, written), torch.tensor([[[[0.0, 0.3], [1.0, 0.7]]]]))


def confusion(true_negative: float, true_positive: float) -> Tensor:
    return torch.tensor([[true_negative, 1 - true_positive], [1 - true_negative, true_positive]])


WRONG = [1, 0, 0, 0, 0, 0, 1, 1, 0, 0]
EVERYONE = {"good": GOOD, "over": OVER, "under": UNDER, "wrong": WRONG, "blank": BLANK}


def seen_by_the_sentinel(foreground: list[float], who: list[str]) -> sentinel.Standing:
    """How a net with these probabilities stands towards the vote of these annotators, weighed by trust."""
    labels = torch.tensor([[EVERYONE[name] for name in who]])
    looked = torch.ones(len(who), dtype=torch.bool)
    weights = trust(agreements(*(EVERYONE[name] for name in who)), looked, 4.0)
    p = torch.tensor([foreground])
    opinion = settled(weighted_votes(labels, weights, 2))
    return sentinel.standing(sentinel.tally(torch.stack([1 - p, p], 1), opinion, labels), 2)


def sure_of(style: list[int]) -> list[float]:
    return [0.97 if written else 0.03 for written in style]


@pytest.mark.parametrize(
    ("belief", "state"),
    [
        (sure_of(GOOD), "fine"),
        (sure_of([1 - written for written in GOOD]), "astray"),  # classes swapped
        (sure_of([1, 1, 1, 1, 1, 1, 1, 1, 1, 1]), "astray"),
        (sure_of([0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), "astray"),  # too little, and sure of it
        (sure_of(WRONG), "astray"),
        (sure_of(BLANK), "astray"),  # though it draws nothing
        ([0.4] * 10, "undertrained"),  # the frequency of the class, everywhere
    ],
    ids=["the truth", "swapped", "too much", "too little", "beside the mark", "blank", "frequencies"],
)
def test_what_a_net_believes_decides_the_verdict_and_never_what_it_makes_of_the_annotators(
    belief: list[float], state: str
) -> None:
    stands = seen_by_the_sentinel(belief, list(EVERYONE))
    verdict = sentinel.judge(stands, explains=True)
    assert verdict.state == state
    assert f"{stands.agreement:.2f}" in verdict.why


def test_a_cohort_with_its_good_annotator_is_identifiable_and_without_is_not() -> None:
    whole = seen_by_the_sentinel(sure_of(GOOD), list(EVERYONE))
    assert whole.dominance == pytest.approx(
        2 * (1 + 1 + 0.5 + 0.5 + 0) / 5 - 1
    )  # of the drawn class, of which blank sees none
    careless = seen_by_the_sentinel(sure_of(OVER), ["over", "over", "wrong", "blank", "blank"])
    assert careless.agreement == 1  # the net has taken the vote's word for it, yet most would not have drawn that
    assert sentinel.judge(careless, explains=True).state == "not identifiable"


def test_dominance_is_counted_over_those_who_looked_and_classes_that_were_seen() -> None:
    right_on_both, never_looked = torch.tensor([[8.0, 1.0], [2.0, 9.0]]), torch.zeros(2, 2)
    assert sentinel.dominance(torch.stack([right_on_both, never_looked])) == pytest.approx(0.6)
    only_background = torch.tensor([[8.0, 0.0], [2.0, 0.0]])
    assert sentinel.dominance(only_background.unsqueeze(0)) == pytest.approx(0.6)
    assert sentinel.dominance(torch.zeros(2, 2, 2)) == 1


def test_with_three_classes_the_most_common_wrong_answer_counts() -> None:
    column = torch.tensor([0.5, 0.1, 0.4])
    counts = torch.stack(
        [column, column.roll(1), column.roll(2)], 1
    )  # right half of the time, wrong the same way the rest
    assert sentinel.dominance(counts.unsqueeze(0)) == pytest.approx(0.1)


def test_with_one_annotator_per_image_a_net_that_draws_like_another_than_the_most_trusted_is_astray() -> None:
    labels = torch.full((4, 4, 10), IGNORE)
    for image, style in enumerate((GOOD, OVER, UNDER, BLANK)):
        labels[image, image] = torch.tensor(style)
    trusted = trust(agreements(GOOD, OVER, UNDER, BLANK), EVERYBODY, 4.0)
    for style, state in ((GOOD, "fine"), (OVER, "astray"), (UNDER, "astray")):
        p = torch.tensor(sure_of(style)).expand(4, 10)
        opinion = p.round().long()  # the net speaks for all who did not look, and agrees with itself
        stands = sentinel.standing(sentinel.tally(torch.stack([1 - p, p], 1), opinion, labels), 2, trusted)
        assert stands.agreement == 1
        assert sentinel.judge(stands, explains=True).state == state


def test_a_method_without_confusions_has_no_style_to_adopt() -> None:
    swapped = sentinel.Standing(agreement=0.1, drawn=5.0, expected=5.0, dominance=0.5)
    assert sentinel.judge(swapped, explains=False).state == "undertrained"


def test_an_untrained_net_is_given_time() -> None:
    nothing_yet = sentinel.Standing(agreement=0.0, drawn=0.0, expected=2.0, dominance=0.5)
    assert sentinel.judge(nothing_yet, explains=True, progress=0.1).state == "fine"


def test_tallies_add_up_over_batches_and_leave_out_what_nobody_saw() -> None:
    posterior = torch.tensor([[[0.5, 0.2, 0.2], [0.5, 0.8, 0.8]]])
    opinion, labels = torch.tensor([[0, 1, IGNORE]]), torch.tensor([[[0, 0, 1], [IGNORE, 1, 1]]])
    whole = sentinel.tally(posterior, opinion, labels)
    parts = [sentinel.tally(posterior[..., [i]], opinion[..., [i]], labels[..., [i]]) for i in range(3)]
    assert torch.allclose(whole, sum(parts[1:], parts[0]))
    stands = sentinel.standing(whole, 2)
    assert (stands.drawn, stands.expected) == (1, pytest.approx(0.5 + 0.8))
    assert whole[5:].view(2, 2, 2).tolist() == [[[1, 1], [0, 1]], [[0, 0], [0, 2]]]  # of a tie the net draws the lowest


def test_overlaps_add_up_to_a_dice_of_the_foreground() -> None:
    predicted, target = torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 1, 1, IGNORE]])
    assert sentinel.overlap(predicted, target).tolist() == [4.0, 4.0]
    assert sentinel.overlap(torch.zeros_like(target), target).tolist() == [0.0, 2.0]


TEAM = """
import sys, torch
from torch import distributed
from rayters.networks.team_sum import team_sum
rank, where = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=2)
counts, looked = team_sum(torch.tensor([[1.0, 2.0 + rank]]), torch.tensor([rank == 1, False]))
assert counts.tolist() == [[2.0, 5.0]], counts
assert looked.tolist() == [True, False] and looked.dtype == torch.bool, looked
distributed.destroy_process_group()
"""


def test_what_one_of_a_team_counts_all_of_it_know(tmp_path: Path) -> None:
    members = [subprocess.Popen([sys.executable, "-c", TEAM, str(rank), str(tmp_path / "team")]) for rank in range(2)]
    assert [member.wait(timeout=120) for member in members] == [0, 0]


def test_who_trains_alone_counts_alone() -> None:
    counts = torch.ones(2, 2)
    assert team_sum(counts)[0] is counts
