"""What is next: pure decisions from a snapshot, and how long to wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.backoff import LONGEST_PAUSE_S, pause_s
from policies.batching import Batching
from policies.lineage import over_budget, rank_for
from policies.planning import (
    Clear,
    Discard,
    GiveUp,
    Limits,
    MakePlan,
    OpenPlan,
    Promote,
    Run,
    Snapshot,
    Step,
    Waiting,
    blocked,
    next_action,
)
from policies.records import PlanKind, PlanState

NOW = datetime(2026, 11, 23, tzinfo=UTC)
LIMITS = Limits(rank=4, rank_budget=16, max_rank=64, max_facts=10, attempts=3)
STACK = LIMITS.model_copy(update={"lineage": "stack"})


def snapshot(**fields: object) -> Snapshot:
    return Snapshot.model_validate({"limits": LIMITS, **fields})


def waiting(*batches: str, alone: bool = False, tries: int = 0) -> tuple[Waiting, ...]:
    return tuple(
        Waiting(id=f"{b}{n}", batch=b, alone=alone, tries=tries) for n, b in enumerate(batches)
    )


def opened(state: PlanState = PlanState.PLANNED, **fields: object) -> OpenPlan:
    return OpenPlan.model_validate({"id": 7, "kind": PlanKind.LEARN, "state": state, **fields})


def made(action: object) -> MakePlan:
    assert isinstance(action, MakePlan)
    return action


def test_nothing_to_do_is_nothing() -> None:
    assert next_action(snapshot(), NOW) is None
    assert blocked(snapshot()) is None


def test_small_batches_become_one_plan() -> None:
    plan = made(next_action(snapshot(waiting=waiting("a", "a", "b")), NOW))
    assert (plan.kind, plan.fact_ids) == (PlanKind.LEARN, ("a0", "a1", "b2"))
    assert plan.because == "3 facts of 2 batches"


def test_a_batch_that_spoilt_a_shared_plan_is_planned_by_itself() -> None:
    facts = (*waiting("a", alone=True), *waiting("b", "b"))
    assert made(next_action(snapshot(waiting=facts), NOW)).fact_ids == ("a0",)
    facts = (*waiting("b"), *waiting("a", alone=True))
    assert made(next_action(snapshot(waiting=facts), NOW)).fact_ids == ("b0",)


def test_another_try_takes_another_seed() -> None:
    assert made(next_action(snapshot(waiting=waiting("a", tries=2)), NOW)).seed == 2


def test_one_adapter_goes_on_with_new_facts() -> None:
    now = snapshot(waiting=waiting("a", "a", "a"), lineage=("x",), ranks=(16,), known=4000)
    plan = made(next_action(now, NOW))
    assert (plan.kind, plan.replaces, plan.rank) == (PlanKind.LEARN, ("x",), 16)
    assert plan.because == "3 facts of 1 batch, beside the 4000 known"
    assert plan.fact_ids == ("a0", "a1", "a2")


def test_in_a_stack_nothing_that_is_there_changes() -> None:
    stack = snapshot(limits=STACK, waiting=waiting("a", "a"), lineage=("x",), ranks=(4,), known=10)
    plan = made(next_action(stack, NOW))
    assert (plan.kind, plan.replaces, plan.rank) == (PlanKind.LEARN, (), 4)


def test_a_full_lineage_is_consolidated_before_more_is_learnt() -> None:
    full = snapshot(
        limits=STACK,
        waiting=waiting("a"),
        lineage=("x", "y", "z", "w"),
        ranks=(4, 4, 4, 4),
        known=18,
    )
    plan = made(next_action(full, NOW))
    assert (plan.kind, plan.replaces, plan.rank) == (
        PlanKind.CONSOLIDATE,
        ("x", "y", "z", "w"),
        8,
    )
    refused = full.model_copy(update={"refused_rebuilds": 2})
    assert made(next_action(refused, NOW)).kind is PlanKind.LEARN
    at_the_end = refused.model_copy(update={"ranks": (16, 16, 16, 16)})
    assert next_action(at_the_end, NOW) is None
    assert "raise train.rank_budget" in (blocked(at_the_end) or "")


def test_without_free_directions_the_lineage_is_consolidated_or_nothing_happens() -> None:
    crowded = snapshot(
        limits=STACK,
        waiting=waiting("a"),
        lineage=("x", "y"),
        ranks=(4, 4),
        known=9,
        no_space=True,
    )
    assert made(next_action(crowded, NOW)).kind is PlanKind.CONSOLIDATE
    refused = crowded.model_copy(update={"refused_rebuilds": 2})
    assert next_action(refused, NOW) is None
    assert "lower protection.share" in (blocked(refused) or "")


@given(
    retrain_at=st.integers(0, 300),
    scratch_facts=st.integers(0, 1000),
    added_facts=st.integers(0, 1000),
)
def test_an_adapter_that_has_doubled_is_retrained_from_scratch(
    retrain_at: int, scratch_facts: int, added_facts: int
) -> None:
    limits = LIMITS.model_copy(update={"retrain_at": retrain_at})
    grown = snapshot(
        limits=limits,
        lineage=("x",),
        ranks=(16,),
        scratch_facts=scratch_facts,
        added_facts=added_facts,
    )
    action = next_action(grown, NOW)
    if (
        retrain_at
        and scratch_facts + added_facts >= retrain_at
        and added_facts >= max(1, scratch_facts)
    ):
        plan = made(action)
        assert (plan.kind, plan.replaces, plan.rank) == (PlanKind.CONSOLIDATE, ("x",), 16)
        assert plan.because == (
            f"trained from scratch on {scratch_facts} facts, {added_facts} added since"
        )
    else:
        assert action is None


def test_new_facts_quiet_hours_and_a_stack_come_before_retraining_from_scratch() -> None:
    limits = LIMITS.model_copy(update={"retrain_at": 4})
    grown = snapshot(limits=limits, lineage=("x",), ranks=(16,), added_facts=9)
    assert made(next_action(grown, NOW)).kind is PlanKind.CONSOLIDATE
    more = grown.model_copy(update={"waiting": waiting("a"), "known": 9})
    assert made(next_action(more, NOW)).kind is PlanKind.LEARN
    held = {"batching": Batching(quiet=("* * * * *",))}
    for changes in (held, {"lineage": "stack"}):
        other = {"limits": limits.model_copy(update=changes)}
        assert next_action(grown.model_copy(update=other), NOW) is None
        assert next_action(more.model_copy(update={**other, "paused": True}), NOW) is None


def test_retracted_facts_come_first_and_nothing_valid_left_means_the_base() -> None:
    known = snapshot(waiting=waiting("a"), lineage=("x",), ranks=(4,), known=5, forbidden=1)
    plan = made(next_action(known, NOW))
    assert (plan.kind, plan.replaces) == (PlanKind.RETRACT, ("x",))
    assert isinstance(next_action(known.model_copy(update={"known": 0}), NOW), Clear)
    refused = known.model_copy(update={"refused_rebuilds": 2})
    assert next_action(refused, NOW) is None
    assert "1 retracted facts are still served" in (blocked(refused) or "")


@pytest.mark.parametrize(
    ("state", "step"), [(PlanState.PLANNED, Step.TRAIN), (PlanState.TRAINED, Step.EVALUATE)]
)
def test_an_open_plan_goes_on_where_it_stands(state: PlanState, step: Step) -> None:
    assert next_action(snapshot(open=opened(state)), NOW) == Run(plan=7, step=step)


def test_the_probe_comes_before_the_first_training() -> None:
    assert next_action(snapshot(open=opened(), probe_ready=False), NOW) == Run(
        plan=7, step=Step.PROBE
    )


def test_what_has_passed_is_promoted_what_fits_no_more_discarded() -> None:
    passed = opened(PlanState.PASSED)
    assert next_action(snapshot(open=passed), NOW) == Promote(plan=7)
    for state in (PlanState.PLANNED, PlanState.TRAINED, PlanState.PASSED):
        action = next_action(snapshot(open=opened(state, fits=False, leased=True)), NOW)
        assert isinstance(action, Discard)


def test_failures_pause_and_end() -> None:
    later = NOW + timedelta(seconds=5)
    resting = snapshot(open=opened(attempts=1, not_before=later))
    assert next_action(resting, NOW) is None
    assert next_action(resting, later) == Run(plan=7, step=Step.TRAIN)
    assert isinstance(next_action(snapshot(open=opened(attempts=3)), NOW), GiveUp)
    assert isinstance(next_action(snapshot(open=opened(interruptions=30)), NOW), GiveUp)


def test_paused_means_nothing_new_yet_what_fits_no_more_is_still_discarded() -> None:
    for plan in (None, opened(), opened(PlanState.PASSED)):
        paused = snapshot(paused=True, open=plan, waiting=waiting("a"))
        assert next_action(paused, NOW) is None
    assert isinstance(next_action(snapshot(paused=True, open=opened(fits=False)), NOW), Discard)
    assert "palorad resume" in (blocked(snapshot(paused=True, waiting=waiting("a"))) or "")


# --- retention -------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 10))
def test_in_a_stack_an_adapter_leaves_room_for_the_next(facts: int, rank: int, times: int) -> None:
    budget = rank * (times + 1)
    limits = STACK.model_copy(update={"rank": rank, "rank_budget": budget})
    found = limits.rank_for(facts)
    assert not over_budget(found, rank, budget)
    assert 4 * found >= facts or found == budget - rank


def test_pauses_double_and_are_bounded() -> None:
    assert [pause_s(n, 5) for n in range(5)] == [0, 5, 10, 20, 40]
    assert pause_s(10_000, 5) == LONGEST_PAUSE_S
    assert [pause_s(n, 1, 3) for n in range(1, 4)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("facts", "rank"), [(1, 4), (4, 4), (5, 8), (9, 16), (16, 16), (17, 16), (500, 16)]
)
def test_few_facts_use_little_of_the_rank_budget(facts: int, rank: int) -> None:
    assert rank_for(facts, 16) == rank
    assert rank_for(facts, 2) == 2
