"""The gate asks as much as it needs, and its verdict does not depend on how it came about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.gate.evidence import SuiteEvidence, SuiteQuestions
from policies.gate.limits import GateLimits
from policies.gate.records import (
    Outcome,
    Role,
    SuiteScore,
    Verdict,
)
from policies.gate.sampling import draw_order
from policies.gate.verdict import judge, next_items
from tests.support.evidence import (
    LIMITS,
    RANK,
    REASONING,
    always,
    evidence,
    facts,
    questions,
    score,
    suite,
    verdict,
)

# --- a bit at a time ------------------------------------------------------------------------------


def run_in_steps(
    asked: Sequence[SuiteQuestions],
    candidate: Callable[[int], bool],
    limits: GateLimits = LIMITS,
    unanswerable: frozenset[str] = frozenset(),
) -> tuple[Verdict, dict[str, set[str]]]:
    """Ask what the gate wants until it wants nothing."""
    truth = {q.suite: {r.id: r for r in score(q, candidate, said="says").results} for q in asked}
    answered: dict[str, set[str]] = {q.suite: set() for q in asked}
    unanswered: dict[str, str] = {}

    def seen(q: SuiteQuestions) -> SuiteEvidence:
        results = tuple(truth[q.suite][name] for name in sorted(answered[q.suite]))
        mine = score(q, candidate).model_copy(update={"results": results})
        ids = {item.id for item in q.items}
        why = {name: reason for name, reason in unanswered.items() if name in ids}
        return SuiteEvidence(questions=q, candidate=mine, base=score(q, always), unanswered=why)

    for _ in range(1000):
        found = evidence(*(seen(q) for q in asked), seed="c" * 64)
        wanted = next_items(found, limits)
        if not wanted:
            return judge(found, limits), answered
        for name, ids in wanted.items():
            assert ids
            assert not answered[name] & set(ids)
            answered[name] |= set(ids) - unanswerable
            unanswered |= dict.fromkeys(set(ids) & unanswerable, "too long")
    raise AssertionError("it never ends")


def test_a_clean_candidate_is_asked_only_as_much_as_needed() -> None:
    said, answered = run_in_steps([questions(count=2000), questions(Role.LOCALITY, 2000)], always)
    assert said.outcome is Outcome.PASS
    assert len(answered["locality"]) < len(answered["reasoning"]) < 500


def test_a_damaged_candidate_is_stopped_at_once() -> None:
    said, answered = run_in_steps(
        [questions(count=2000), questions(Role.LOCALITY, 2000)], lambda n: n % 3 != 0
    )
    assert said.outcome is Outcome.FAIL
    assert sum(map(len, answered.values())) <= 256


def test_a_small_suite_is_used_up_and_then_waits_for_a_person() -> None:
    said, answered = run_in_steps([questions(count=100)], always)
    assert said.outcome is Outcome.INCONCLUSIVE
    assert len(answered["reasoning"]) == 100


def test_all_new_facts_are_asked_in_one_go() -> None:
    new = facts(20).questions
    empty = evidence(REASONING, SuiteEvidence(questions=new))
    assert len(next_items(empty, LIMITS)["new facts"]) == 40


def test_an_item_that_cannot_be_answered_ends_the_asking_without_a_pass() -> None:
    asked = questions(count=2000)
    first = draw_order(asked.items, "c" * 64)[5][0].id
    said, _ = run_in_steps([asked], always, unanswerable=frozenset({first}))
    assert said.outcome is Outcome.INCONCLUSIVE
    assert "too long" in said.reasons[0]


# --- properties -----------------------------------------------------------------------------------


def random_suite(
    seed: int, count: int, right: float, loss: float
) -> tuple[SuiteQuestions, list[bool]]:
    rng = np.random.default_rng(seed)
    return questions(count=count), list(rng.random(count) < right - loss)


@pytest.mark.parametrize("loss", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("better", [1, 3, 30])
def test_better_answers_do_not_make_the_verdict_worse(loss: float, better: int) -> None:
    """On fixed draws: a better answer changes later bets, so this is no theorem (docs/gate.md)."""
    for seed in range(8):
        asked, candidate = random_suite(seed, 600, 0.97, loss)
        improved = list(candidate)
        for at in np.random.default_rng(seed + 1).integers(0, 600, better):
            improved[at] = True
        before = verdict(suite(asked, candidate=candidate.__getitem__))
        after = verdict(suite(asked, candidate=improved.__getitem__))
        assert RANK[after.outcome] >= RANK[before.outcome], seed


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.03, 0.1]))
@settings(max_examples=40, deadline=None)
def test_property_the_order_in_which_data_come_does_not_matter(seed: int, loss: float) -> None:
    asked, candidate = random_suite(seed, 500, 1.0, loss)
    whole = suite(asked, candidate=candidate.__getitem__)
    rng = np.random.default_rng(seed)

    def shuffled(score: SuiteScore) -> SuiteScore:
        order = rng.permutation(len(score.results))
        return score.model_copy(update={"results": tuple(score.results[int(n)] for n in order)})

    assert whole.candidate is not None
    assert whole.base is not None
    order = rng.permutation(500)
    mixed = SuiteEvidence(
        questions=asked.model_copy(update={"items": tuple(asked.items[int(n)] for n in order)}),
        candidate=shuffled(whole.candidate),
        base=shuffled(whole.base),
    )
    assert verdict(mixed) == verdict(whole)


def test_judging_twice_says_the_same() -> None:
    assert verdict(REASONING, facts(19)) == verdict(REASONING, facts(19))


def test_the_drawn_order_depends_on_the_seed_alone_and_keeps_clusters_together() -> None:
    items = tuple(
        item.model_copy(update={"cluster": f"c{n // 2}"})
        for n, item in enumerate(questions(count=50).items)
    )
    order = draw_order(items, "a")
    assert draw_order(items[::-1], "a") == order
    assert draw_order(items, "b") != order
    assert sorted(len(cluster) for cluster in order) == [2] * 25
    assert all(one.cluster == other.cluster for one, other in order)
    assert sorted(item.id for cluster in order for item in cluster) == sorted(i.id for i in items)
