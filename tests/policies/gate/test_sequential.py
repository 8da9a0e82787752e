"""The sequential test: its guarantees by brute force, its monotony, its figures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.gate.sequential import (
    BettingState,
    Design,
    Floats,
    SequentialResult,
    advance,
    crossings,
    fixed_size,
    follow,
    items_to_pass,
    kelly_bet,
    loses_more,
    start,
)

BALANCED = Design(0.02, 0.05, 0.05)
RANK = {"fail": 0, None: 1, "pass": 2}

outcomes = st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.0, 0.0, 1.0]), min_size=1, max_size=400)


def final_wealths(design: Design, stream: tuple[float, ...]) -> tuple[float, float]:
    path, _ = advance(design, start(1), np.array([stream]))
    return math.exp(path.log_pass[0, -1]), math.exp(path.log_fail[0, -1])


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("margin", [0.05, 0.3])
def test_the_wealth_is_no_more_than_one_on_average_when_the_hypothesis_holds(
    gain: float, margin: float
) -> None:
    """Summed over every stream of seven items with its exact probability."""
    design = Design(margin, 0.05, 0.05)
    worse = {-1.0: gain + margin, 1.0: gain, 0.0: 1 - 2 * gain - margin}
    same = {-1.0: gain, 1.0: gain, 0.0: 1 - 2 * gain}
    pass_mean = fail_mean = 0.0
    for stream in itertools.product((-1.0, 0.0, 1.0), repeat=7):
        against_worse, against_same = final_wealths(design, stream)
        pass_mean += against_worse * math.prod(worse[x] for x in stream)
        fail_mean += against_same * math.prod(same[x] for x in stream)
    assert pass_mean == pytest.approx(1)
    assert fail_mean == pytest.approx(1)


def test_bets_never_look_ahead() -> None:
    rng = np.random.default_rng(0)
    stream = rng.choice([-1.0, 0.0, 1.0], size=(3, 50))
    changed = stream.copy()
    changed[:, 30:] = -1
    for one, other in zip(_paths(stream), _paths(changed), strict=True):
        assert np.array_equal(one[:, :30], other[:, :30])


def _paths(stream: Floats) -> tuple[Floats, Floats]:
    path, _ = advance(BALANCED, start(len(stream)), stream)
    return path.log_pass, path.log_fail


@given(outcomes, st.integers(1, 399))
def test_blocks_do_not_matter(stream: list[float], cut: int) -> None:
    whole, _ = advance(BALANCED, start(1), np.array([stream]))
    first, rest = np.array([stream[:cut]]), np.array([stream[cut:]])
    begun, state = advance(BALANCED, start(1), first)
    if rest.size:
        ended, _ = advance(BALANCED, state, rest)
        assert ended.log_pass[0, -1] == pytest.approx(whole.log_pass[0, -1])
        assert ended.log_fail[0, -1] == pytest.approx(whole.log_fail[0, -1])
    else:
        assert begun.log_pass[0, -1] == pytest.approx(whole.log_pass[0, -1])


def test_what_is_decided_stays_decided() -> None:
    stream = np.zeros(400)
    decided = follow(BALANCED, stream)
    assert decided.decision == "pass"
    stream[decided.items :] = -1
    assert follow(BALANCED, stream) == decided


@pytest.mark.parametrize("discordance", [0.02, 0.05, 0.1, 0.2])
@pytest.mark.parametrize("drop", [-0.01, 0.0, 0.01, 0.02])
def test_better_answers_do_not_make_the_decision_worse(discordance: float, drop: float) -> None:
    """On fixed streams: a better answer changes later bets, so there is no proof (docs/gate.md)."""
    rng = np.random.default_rng([round(1000 * discordance), round(1000 * drop) + 10])
    chances = [(discordance + drop) / 2, 1 - discordance, (discordance - drop) / 2]
    for _ in range(25):
        stream = rng.choice([-1.0, 0.0, 1.0], p=chances, size=rng.integers(150, 600))
        better = np.minimum(stream + (rng.random(stream.size) < rng.choice([0.002, 0.02])), 1)
        assert RANK[follow(BALANCED, better).decision] >= RANK[follow(BALANCED, stream).decision]


@given(outcomes, st.lists(st.integers(0, 399), min_size=1, max_size=5))
def test_better_answers_never_add_evidence_for_a_drop(stream: list[float], at: list[int]) -> None:
    """Exactly, at every item: the bets against "no drop" are fixed."""
    before = np.array([stream])
    after = before.copy()
    for place in at:
        after[0, place % len(stream)] = min(1.0, after[0, place % len(stream)] + 1)
    assert np.all(_paths(after)[1] <= _paths(before)[1] + 1e-12)


@given(outcomes, st.integers(0, 399))
def test_a_loss_turned_into_a_gain_never_hurts(stream: list[float], at: int) -> None:
    """Exactly, at every item: the discordant items stay the same, so do the bets."""
    at %= len(stream)
    before = np.array([stream])
    before[0, at] = -1
    after = before.copy()
    after[0, at] = 1
    for (lost_pass, lost_fail), (won_pass, won_fail) in [(_paths(before), _paths(after))]:
        assert np.all(won_pass >= lost_pass - 1e-12)
        assert np.all(won_fail <= lost_fail + 1e-12)


@given(outcomes, st.integers(0, 2**32 - 1))
def test_the_evidence_for_a_drop_does_not_depend_on_the_order(
    stream: list[float], seed: int
) -> None:
    shuffled = np.random.default_rng(seed).permutation(stream)
    one, other = _paths(np.array([stream]))[1], _paths(shuffled[None, :])[1]
    assert one[0, -1] == pytest.approx(other[0, -1], abs=1e-9)


@pytest.mark.parametrize("discordance", [0.02, 0.05, 0.1])
def test_errors_stay_within_their_bounds(discordance: float) -> None:
    """A small run of what benchmarks/gate measures at length; four standard errors of slack."""
    runs, margin = 1500, 0.02
    slack = 4 * math.sqrt(0.05 * 0.95 / runs)
    passed, _ = simulate(discordance, margin, runs)
    assert passed <= 0.05 + slack
    passed, failed = simulate(discordance, 0.0, runs)
    assert failed <= 0.05 + slack
    assert passed >= 0.9


def simulate(discordance: float, drop: float, runs: int) -> tuple[float, float]:
    rng = np.random.default_rng(7)
    u = rng.random((runs, 3 * fixed_size(BALANCED, discordance)))
    stream = (u < (discordance - drop) / 2) * 1.0 - (u > 1 - (discordance + drop) / 2)
    path, _ = advance(BALANCED, start(runs), stream)
    passed, failed = crossings(BALANCED, path)
    return float((passed < failed).mean()), float((failed < passed).mean())


def test_correlated_items_count_as_one_when_they_are_clustered() -> None:
    """Four paraphrases of one question that always agree: alone each is taken for new evidence."""
    clusters = np.array([-1.0, 0.0, 0.0] * 6)
    assert follow(BALANCED, np.repeat(clusters, 4)).decision == "fail"
    assert follow(BALANCED, clusters).decision is None


def test_gains_pass_sooner_than_no_change() -> None:
    nothing = follow(BALANCED, np.zeros(1000))
    gains = follow(BALANCED, np.tile([1.0, 0.0, 0.0, 0.0], 250))
    assert nothing.decision == gains.decision == "pass"
    assert gains.items < nothing.items


def test_the_least_number_of_items() -> None:
    """No stream without a gain can pass on fewer items than rule out the margin at all."""
    least = items_to_pass(BALANCED, 0.0)
    assert least >= math.log(0.05) / math.log(1 - BALANCED.margin) - 2
    assert follow(BALANCED, np.zeros(least - 1)).decision is None
    assert follow(BALANCED, np.zeros(2 * least)).decision == "pass"


def test_more_discordance_and_finer_margins_need_more_items() -> None:
    assert items_to_pass(BALANCED, 0.02) < items_to_pass(BALANCED, 0.1)
    assert items_to_pass(Design(0.01, 0.05, 0.05), 0.05) > items_to_pass(BALANCED, 0.05)
    assert items_to_pass(BALANCED, 0.05, log_wealth=3) == 0


def test_fixed_sizes_of_the_usual_formula() -> None:
    sizes = [fixed_size(Design(0.02, 0.05, beta), 0.05) for beta in (0.2, 0.1)]
    assert sizes == [773, 1071]


def test_a_bet_never_risks_everything() -> None:
    bets = kelly_bet(np.array([0.0, 1e-6, 0.02, 0.5, 1.0]), 0.3)
    assert np.all((bets > 0) & (bets <= 1))
    assert np.all(np.diff(bets) < 0)


def test_empty_and_impossible() -> None:
    assert follow(BALANCED, np.zeros(0)) == SequentialResult(None, 0, 0.0, 0.0, 0.0, 0.025, 0.0)
    for bad in ((0.0, 0.05, 0.05), (0.02, 0.0, 0.05), (0.02, 0.05, 1.0), (math.nan, 0.05, 0.05)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Design(*bad)


def test_a_fallen_stratum_is_seen_and_a_small_loss_is_not() -> None:
    assert loses_more(np.array([-1.0] * 8 + [0.0]), allowed=0.2, beta=0.001)
    assert not loses_more(np.array([-1.0] + [0.0] * 20), allowed=0.2, beta=0.01)
    assert not loses_more(np.array([-1.0, 0.0, 0.0, 0.0, 0.0] * 40), allowed=0.2, beta=0.05)
    assert not loses_more(np.zeros(0), allowed=0.2, beta=0.01)


def test_states_can_be_thinned_out() -> None:
    _, state = advance(BALANCED, start(3), np.zeros((3, 10)))
    kept = BettingState(
        state.items, state.squares[:1], state.log_pass[:1], state.log_fail_by_bet[:1]
    )
    path, _ = advance(BALANCED, kept, np.zeros((1, 5)))
    assert path.log_pass.shape == (1, 5)
