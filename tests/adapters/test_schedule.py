"""How many steps facts take, and how KL weights and presets follow from them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import schedule
from adapters.config import TrainConfig
from adapters.schedule import facts_in_step, kl_share, steps_needed
from policies.lineage import outgrown


def test_the_worked_table_is_what_the_defaults_give() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", schedule.__doc__ or "", re.M)
    assert {int(row[0]) for row in rows} == {1, 12, 36, 144, 500}
    small, large = TrainConfig(), TrainConfig().large_batch()
    for facts, replayed, few, many in (map(int, row) for row in rows):
        assert steps_needed(small, facts, replayed) == few, (facts, replayed)
        assert steps_needed(large, facts, replayed) == many, (facts, replayed)


@given(facts=st.integers(1, 2000), usual=st.integers(1, 100))
def test_a_step_takes_at_most_twice_the_usual_facts(facts: int, usual: int) -> None:
    config = TrainConfig(new_per_step=usual)
    count = facts_in_step(config, facts)
    assert min(facts, usual) <= count <= min(facts, 2 * usual)
    assert count <= facts_in_step(config, facts + 1)


@given(facts=st.integers(10, 2000), large=st.booleans())
def test_a_replayed_fact_weighs_the_same_against_the_kl_terms_beside_any_number_of_new_ones(
    facts: int, large: bool
) -> None:
    config = TrainConfig().large_batch() if large else TrainConfig()
    of_replayed = config.replayed_per_step / facts_in_step(config, facts)
    usual = config.replayed_per_step / config.new_per_step / kl_share(config, 36)
    assert of_replayed / kl_share(config, facts, 1000) == pytest.approx(usual, rel=0.15)


@given(facts=st.integers(1, 2000), earlier=st.integers(0, 2000), sub_steps=st.integers(2, 5))
def test_the_large_preset_regularises_as_hard_and_reads_more_of_everything(
    facts: int, earlier: int, sub_steps: int
) -> None:
    small = TrainConfig(sub_steps=sub_steps)
    large = small.large_batch()
    assert large.large_batch() == large
    assert kl_share(large, facts) == pytest.approx(kl_share(small, facts), rel=0.3)
    steps = [steps_needed(one, facts, earlier) for one in (small, large)]
    seen = [facts_in_step(one, facts) * n for one, n in zip((small, large), steps, strict=True)]
    known = [one.known_per_step * n for one, n in zip((small, large), steps, strict=True)]
    assert seen[1] >= 0.9 * seen[0]
    # Steps are whole ones: up to one of them is rounded away.
    assert known[1] + large.known_per_step >= 2 * known[0]


@given(facts=st.integers(145, 2000), earlier=st.integers(0, 2000))
def test_of_many_facts_a_cpu_takes_less_than_half_of_the_small_steps(
    facts: int, earlier: int
) -> None:
    small = TrainConfig(max_steps=1_000_000)
    assert steps_needed(small.resolved("cpu", facts), facts, earlier) < 0.5 * steps_needed(
        small, facts, earlier
    )


@given(facts=st.integers(1, 144), earlier=st.integers(0, 5000))
def test_steps_grow_with_the_logarithm_of_the_earlier_facts(facts: int, earlier: int) -> None:
    config = TrainConfig(max_steps=100_000)
    alone = steps_needed(config, facts)
    beside = steps_needed(config, facts, earlier)
    assert alone <= beside <= steps_needed(config, facts, 2 * earlier)
    usual = max(alone, config.base_steps)
    if earlier <= config.large_run_facts:
        assert beside <= usual
    else:
        more = steps_needed(config, facts, 2 * earlier) - beside
        assert more == pytest.approx(config.steps_per_doubling * usual, abs=1)
    assert steps_needed(TrainConfig(replayed_per_step=0), facts, earlier) == alone


@settings(max_examples=30, deadline=None)
@given(facts=st.integers(4, 144), phase=st.floats(1.0, 2.0), large=st.booleans())
def test_retraining_leaves_the_steps_of_a_batch_growing_with_the_logarithm(
    facts: int, phase: float, large: bool
) -> None:
    """Each doubling of the batches adds about as many steps to their mean as the one before."""
    small = TrainConfig(max_steps=1_000_000)
    config, retrain_at = small.large_batch() if large else small, 480

    def mean(batches: int) -> float:
        steps, begun = 0, facts
        for known in range(0, batches * facts, facts):
            steps += steps_needed(config, facts, known)
            if outgrown(begun, known + facts - begun, retrain_at):
                begun = known + facts
                steps += steps_needed(config.resolved("cpu", begun), begun)
        return steps / batches

    first = round(phase * 2 * retrain_at / facts)
    once, twice, again = (mean(n * first) for n in (1, 2, 4))
    assert 0 < again - twice <= 1.25 * (twice - once)


@given(facts=st.integers(144, 2000))
def test_each_of_many_new_facts_is_shown_more_often_than_of_a_few(facts: int) -> None:
    config = TrainConfig(max_steps=1_000_000)

    def shown(count: int) -> float:
        return facts_in_step(config, count) * steps_needed(config, count) / count

    assert config.epochs <= 1.01 * shown(facts) < shown(2 * facts)
    assert steps_needed(config, facts, facts) == steps_needed(config, facts)
