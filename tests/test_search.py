"""A search: a conditional space, several seeds counted as one, the same ranking after a kill, no look at the reference."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayters import gaze, methods
from rayters.methods import AnnotatorConfusion, MajorityVote, RobustLoss, TLoss
from rayters.training.run import Run
from rayters.tuning.propose import Measured, propose
from rayters.tuning.search import Budget, Contender, Plan, search
from rayters.tuning.space import Space, named, parts_of

EVERYTHING = Space(gazes=gaze.ALL, downsampling=(1, 2))
SMALL = Space(methods=(MajorityVote, RobustLoss), only=("power", "dice"))


def drawn(space: Space, seed: int) -> dict[str, Any]:
    return propose(space, [], seed=seed, number=0, sampler="random")[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_a_candidate_carries_the_parameters_of_its_own_method_and_gaze_and_no_others(seed: int) -> None:
    candidate = drawn(EVERYTHING, seed)
    own = {candidate["method"], candidate["gaze"]}
    assert {name.split(".")[0] for name in candidate if "." in name} <= own
    expected = {
        d.name for part in (*methods.ALL, *gaze.ALL) if part.__name__ in own for d in EVERYTHING.dimensions(part)
    }
    assert {name for name in candidate if "." in name} == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_a_candidate_lies_in_its_ranges_and_is_drawn_alike_from_the_same_seed(seed: int) -> None:
    candidate = drawn(EVERYTHING, seed)
    assert drawn(EVERYTHING, seed) == candidate
    for part in (*methods.ALL, *gaze.ALL):
        for dimension in EVERYTHING.dimensions(part):
            assert dimension.name not in candidate or dimension.holds(candidate[dimension.name])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31))
def test_a_candidate_is_a_run(seed: int) -> None:
    candidate = drawn(named(), seed)
    run = named().run(candidate, Run())
    assert type(run.method).__name__ == candidate["method"]
    assert run.downsampling == candidate["downsampling"]
    assert run.gaze.field_of_view == candidate["FixedGaze.field_of_view"]  # type: ignore[union-attr]


def test_the_default_of_a_method_is_the_method_as_it_comes() -> None:
    for method in (AnnotatorConfusion, TLoss, MajorityVote):
        assert EVERYTHING.run(EVERYTHING.default(method), Run()).method == method()


def test_the_named_search_is_over_what_was_named() -> None:
    names = {d.name for d in named().dimensions(AnnotatorConfusion)}
    assert names == {"AnnotatorConfusion.trace_weight", "AnnotatorConfusion.warm_up", "AnnotatorConfusion.level"}
    assert [d.name for d in named().dimensions(gaze.FixedGaze)] == ["FixedGaze.field_of_view"]
    assert named().downsampling == (1, 2, 4)


def test_an_unknown_method_or_field_is_told_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="unknown: magic; known are MajorityVote"):
        parts_of(["magic"], methods.ALL)
    with pytest.raises(ValueError, match="trace_weight"):
        Space(only=("no_such_field",))


def test_tpe_learns_from_what_was_measured() -> None:
    # the best power is 0.3; random draws lie 0.25 from it on average
    history: list[Measured] = []
    space = Space(methods=(RobustLoss,), only=("power",))
    for number in range(30):
        (candidate,) = propose(space, history, seed=1, number=number)
        history.append(Measured(candidate=candidate, figures={"dice": 1 - abs(candidate["RobustLoss.power"] - 0.3)}))
    late = [abs(each.candidate["RobustLoss.power"] - 0.3) for each in history[-10:]]
    assert sum(late) / 10 < 0.1


def test_candidates_proposed_together_differ_and_an_exhausted_space_says_so() -> None:
    space = Space(methods=(TLoss,), only=("fusion",), downsampling=(1, 2))  # fusion x resolution: four candidates
    four = propose(space, [], seed=0, number=0, count=10)
    assert len(four) == 4
    assert propose(space, [Measured(candidate=each, figures={"dice": 0.5}) for each in four], seed=0, number=4) == []


def test_several_objectives_are_searched_at_once() -> None:
    history = [Measured(candidate=SMALL.default(MajorityVote), figures={"dice": 0.5, "ece": 0.1, "seconds": 9.0})]
    assert len(propose(SMALL, history, seed=0, number=1, objectives=("dice", "ece", "seconds"))) == 1


def fake(trials: Sequence[Mapping[str, Any]], may_stop: bool = False) -> list[dict[str, Any] | None]:
    """Worth falls with the seed; the vote is the better method."""
    found: list[dict[str, Any] | None] = []
    for trial in trials:
        worth = 0.8 if trial["candidate"]["method"] == "MajorityVote" else 0.5
        worth += trial["candidate"].get("MajorityVote.dice", 0) / 10 - trial["seed"] / 10
        found.append({"dice": worth, "ece": 0.1, "seconds": 1800.0})
    return found


def last(plan: Plan, budget: Budget, sweep: Any = fake) -> list[Contender]:
    return list(search(plan, budget, sweep))[-1]


def test_several_seeds_are_one_candidate() -> None:
    found = last(Plan(space=SMALL, seeds=3, at_once=2), Budget(trials=3))
    assert len(found) == 2 + 3  # the defaults, and the trials
    assert all(len(each.results) == 3 for each in found)
    vote = next(each for each in found if each.is_default and each.candidate["method"] == "MajorityVote")
    assert vote.mean("dice") == pytest.approx(0.8 + vote.candidate["MajorityVote.dice"] / 10 - 0.1)


def test_the_defaults_of_every_method_are_among_the_candidates() -> None:
    found = last(Plan(space=SMALL, seeds=1), Budget(trials=0))
    assert [each.candidate for each in sorted(found, key=lambda each: each.number)] == SMALL.defaults()
    assert all(each.is_default for each in found)


def test_the_lower_half_is_not_trained_from_every_seed_but_the_defaults_are() -> None:
    found = last(Plan(space=SMALL, seeds=3, at_once=4, halving="seeds"), Budget(trials=12))
    dropped = [each for each in found if each.state == "dropped"]
    assert dropped
    assert all(len(each.results) == 1 for each in dropped)
    assert all(len(each.results) == 3 for each in found if each.is_default)
    assert [each.state for each in found] == sorted((each.state for each in found), reverse=True)  # whole ones first


def test_a_candidate_that_was_stopped_early_is_ranked_behind_those_that_ended() -> None:
    def sweep(trials: Sequence[Mapping[str, Any]], may_stop: bool) -> list[dict[str, Any] | None]:
        if not may_stop:
            return fake(trials)
        return [{"stopped": {"epoch": 3, "score": 0.2}}, *fake(trials[1:])]

    found = last(Plan(space=SMALL, seeds=2, at_once=2, halving="epochs"), Budget(trials=4), sweep)
    stopped = [each for each in found if each.stopped]
    assert len(stopped) == 2  # one a generation
    assert {each.why for each in stopped} == {"behind the others after 3 epochs"}
    assert found[-2:] == stopped
    assert not stopped[0].results


def test_with_one_seed_only_what_was_stopped_early_is_left_behind() -> None:
    def sweep(trials: Sequence[Mapping[str, Any]], may_stop: bool) -> list[dict[str, Any] | None]:
        return [{"stopped": {"epoch": 3, "score": 0.2}}, *fake(trials[1:])] if may_stop else fake(trials)

    by_seeds = last(Plan(space=SMALL, seeds=1, at_once=2, halving="seeds"), Budget(trials=4))
    assert {each.state for each in by_seeds} == {"whole"}  # there is no further seed to save
    by_epochs = last(Plan(space=SMALL, seeds=1, at_once=2, halving="epochs"), Budget(trials=4), sweep)
    assert [each.state for each in by_epochs] == ["whole"] * 4 + ["dropped"] * 2
    assert all(each.stopped for each in by_epochs[4:])


def test_a_seed_that_fails_fails_its_candidate() -> None:
    def sweep(trials: Sequence[Mapping[str, Any]], may_stop: bool) -> list[dict[str, Any] | None]:
        return [None if trial["seed"] == 1 else result for trial, result in zip(trials, fake(trials), strict=True)]

    found = last(Plan(space=SMALL, seeds=2), Budget(trials=1), sweep)
    assert {each.state for each in found} == {"failed"}
    assert found[0].why == "a training died"


def test_hours_and_gpu_hours_end_a_search() -> None:
    clock = iter(range(0, 10**6, 1800))  # half an hour per look
    plan = Plan(space=SMALL, seeds=1, at_once=1)
    generations = list(search(plan, Budget(trials=100, hours=1), fake, now=lambda: next(clock)))
    assert len(generations) == 2
    quarter = Budget(trials=100, gpu_hours=1, gpus=0.5)  # half an hour on half a GPU each
    assert len(list(search(plan, quarter, fake))[-1]) == 4


def test_optuna_draws_what_a_space_says() -> None:
    trial = optuna.trial.FixedTrial({"method": "MajorityVote", "MajorityVote.dice": 0.25})
    space = Space(methods=(MajorityVote, RobustLoss), only=("power", "dice"))
    assert space.draw(trial) == {  # type: ignore[arg-type]
        "method": "MajorityVote", "gaze": "FixedGaze", "downsampling": 1, "MajorityVote.dice": 0.25,
    }  # fmt: skip
