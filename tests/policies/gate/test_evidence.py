"""What was not measured, or not rightly, never passes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.gate.evidence import SuiteEvidence
from policies.gate.records import (
    AnswerLikelihood,
    ItemResult,
    Outcome,
    Role,
    UnlearningCheck,
    UnlearningEvidence,
)
from policies.gate.sampling import aa_sample, draw_order
from policies.gate.stability import Stability, stability
from policies.gate.verdict import judge, next_items
from tests.support.evidence import (
    LIMITS,
    REASONING,
    always,
    evidence,
    only,
    questions,
    score,
    suite,
    verdict,
)

# --- unstable decoding ----------------------------------------------------------------------------


def test_instability_narrows_the_margin_and_so_asks_for_more_items() -> None:
    asked = questions(count=200, margin=0.03)
    assert verdict(suite(asked)).outcome is Outcome.PASS
    noisy = Stability(items=200, worse=2, better=2)
    said = verdict(suite(asked, aa=noisy))
    assert said.outcome is Outcome.INCONCLUSIVE


def test_decoding_too_unstable_for_the_margin_is_inconclusive() -> None:
    said = verdict(suite(questions(), aa=Stability(items=100, worse=12, better=12)))
    assert said.outcome is Outcome.INCONCLUSIVE
    assert "too unstable: 24.0 %" in said.reasons[0]


def test_a_reference_that_changed_between_two_runs_is_inconclusive() -> None:
    said = verdict(suite(questions(), aa=Stability(items=500, worse=15, better=0)))
    assert said.outcome is Outcome.INCONCLUSIVE
    assert "something other than the weights has changed" in said.reasons[0]
    assert not Stability(items=500, worse=9, better=5).lopsided


def test_base_against_itself_counts_what_both_runs_answered() -> None:
    def run(*right: bool) -> dict[str, ItemResult]:
        return {str(n): ItemResult(id=str(n), correct=one) for n, one in enumerate(right)}

    found = stability(run(True, True, False, False), run(True, False, True))
    assert found == Stability(items=3, worse=1, better=1)
    assert stability(run(True), {}) is None


def test_base_is_asked_twice_where_it_is_a_baseline() -> None:
    items = questions(count=50).items
    assert len(aa_sample(Role.REASONING, items, "f", 20)) == 20
    assert aa_sample(Role.LOCALITY, items[::-1], "f", 20) == aa_sample(
        Role.LOCALITY, items, "f", 20
    )
    assert not aa_sample(Role.RETENTION, items, "f", 20)


# --- missing and wrong data never pass ------------------------------------------------------------


def broken(update: Mapping[str, object], name: str = "candidate") -> SuiteEvidence:
    changed = getattr(REASONING, name).model_copy(update=update)
    return REASONING.model_copy(update={name: changed})


def results(count: int) -> tuple[ItemResult, ...]:
    assert REASONING.candidate is not None
    return REASONING.candidate.results[:count]


EMPTY = tuple(ItemResult(id=item.id, correct=False) for item in REASONING.questions.items)
STRANGER = ItemResult(id="stranger", correct=True, output="x")
BAD = {
    "no candidate": (REASONING.model_copy(update={"candidate": None}), "was not measured"),
    "no base": (REASONING.model_copy(update={"base": None}), "was not measured"),
    "no answers": (broken({"results": ()}), "no item has been answered"),
    "an empty suite": (suite(questions(count=0)), "holds no items"),
    "a changed suite": (broken({"fingerprint": "0" * 16}, "base"), "measure it again"),
    "another suite": (broken({"suite": "other"}), "was measured on 'other'"),
    "an item answered twice": (broken({"results": (*results(800), *results(1))}), "twice"),
    "an unknown item": (broken({"results": (*results(800), STRANGER)}), "'stranger'"),
    "a gap": (broken({"results": results(800)[1:]}), "no answer to 1 of the 800"),
    "a base with a gap": (
        broken({"results": results(800)[1:]}, "base"),
        "base has no answer to 1",
    ),
    "silence": (broken({"results": EMPTY}), "answered nothing to all 800 items"),
    "a silent base": (broken({"results": EMPTY}, "base"), "base answered"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_inconclusive_with_its_reason(name: str) -> None:
    bad, reason = BAD[name]
    said = verdict(bad)
    assert said.outcome is Outcome.INCONCLUSIVE
    assert reason in said.reasons[0]


def test_duplicate_items_are_inconclusive() -> None:
    asked = questions(count=300)
    twice = asked.model_copy(update={"items": (*asked.items, asked.items[0])})
    said = verdict(suite(asked).model_copy(update={"questions": twice}))
    assert said.outcome is Outcome.INCONCLUSIVE
    assert "in the suite twice" in said.reasons[0]


def test_a_live_revision_that_was_not_measured_is_inconclusive() -> None:
    said = verdict(REASONING, live="palora-000001")
    assert said.outcome is Outcome.INCONCLUSIVE
    assert "live was not measured" in said.reasons[0]


@given(
    hidden=st.sets(st.integers(0, 399), min_size=1),
    who=st.sampled_from(["candidate", "base"]),
)
@settings(max_examples=60, deadline=None)
def test_property_a_hidden_answer_never_passes(hidden: set[int], who: str) -> None:
    """Answers missing before the last one drawn; a shorter prefix is a smaller sample instead."""
    asked = questions(count=400)
    order = [c[0].id for c in draw_order(asked.items, "c0ffee")]
    gone = {order[n] for n in hidden if n < 399}
    whole = suite(asked)
    kept = tuple(r for r in getattr(whole, who).results if r.id not in gone)
    cut = whole.model_copy(update={who: getattr(whole, who).model_copy(update={"results": kept})})
    said = verdict(cut)
    assert (said.outcome is Outcome.PASS) == (not gone)


# --- what could not be measured in full, retracted facts ------------------------------------------


def test_a_suite_with_an_obstacle_never_passes_and_says_why() -> None:
    two = {f"reasoning-{n}": f"base did not answer item {n}: timed out" for n in (3, 7)}
    for update, reason in (
        ({"unanswered": two}, "base did not answer item 3: timed out (and 1 more)"),
        ({"broken": "the grader failed"}, "the grader failed"),
    ):
        hindered = REASONING.model_copy(update=update)
        said = verdict(hindered, suite(questions(Role.LOCALITY)))
        assert [s.outcome for s in said.suites] == [Outcome.INCONCLUSIVE, Outcome.PASS]
        assert said.outcome is Outcome.INCONCLUSIVE
        assert said.reasons[0].endswith(reason)
        assert not next_items(evidence(hindered), LIMITS)


def test_an_obstacle_does_not_hide_a_drop() -> None:
    damaged = suite(questions(), candidate=lambda n: n % 5 != 0)
    said = verdict(damaged.model_copy(update={"broken": "the grader failed"}))
    assert said.outcome is only(said).outcome is Outcome.FAIL
    assert "the grader failed" in said.reasons[0]


def test_a_silent_model_is_not_asked_for_more() -> None:
    asked = questions(count=2000)
    some = score(asked, always, only=64)
    silent = tuple(result.model_copy(update={"output": " "}) for result in some.results)
    heard = SuiteEvidence(questions=asked, candidate=some, base=score(asked, always))
    assert next_items(evidence(heard, seed="x"), LIMITS)
    mute = heard.model_copy(update={"base": some.model_copy(update={"results": silent})})
    assert not next_items(evidence(mute, seed="x"), LIMITS)


def test_questions_left_out_are_told_and_a_suite_of_which_none_is_left_never_passes() -> None:
    known = suite(questions(Role.LOCALITY))
    some = known.model_copy(
        update={"questions": known.questions.model_copy(update={"left_out": 60})}
    )
    said = verdict(REASONING, some)
    assert said.outcome is Outcome.PASS
    assert "60 questions left out" in said.suites[1].reason
    none = SuiteEvidence(questions=questions(Role.LOCALITY, 0).model_copy(update={"left_out": 9}))
    said = verdict(REASONING, none)
    assert (said.outcome, len(said.suites)) == (Outcome.INCONCLUSIVE, 1)
    assert "9 questions left out" in said.reasons[1]
    warned = verdict(REASONING, none, limits=LIMITS.model_copy(update={"blind_suites": "warn"}))
    assert warned.outcome is Outcome.PASS
    assert warned.reasons[1].startswith("warning: locality: 9 questions left out")


NEAR, FAR = (AnswerLikelihood(rank=r, probability=p) for r, p in ((1, 0.8), (500, 0.001)))


@pytest.mark.parametrize(
    ("candidate", "passing", "failing"),
    [
        (FAR, Outcome.PASS, Outcome.FAIL),
        (NEAR, Outcome.FAIL, Outcome.FAIL),
        (None, Outcome.INCONCLUSIVE, Outcome.FAIL),
    ],
)
def test_a_candidate_that_gives_a_retracted_fact_away_never_passes(
    candidate: AnswerLikelihood | None, passing: Outcome, failing: Outcome
) -> None:
    found = UnlearningEvidence(problem="no log-probabilities")
    if candidate:
        check = UnlearningCheck(fact="f", held_out=True, base=FAR, candidate=candidate)
        found = UnlearningEvidence(checks=(check,))
    for wrong, expected in ((0, passing), (5, failing)):
        tested = suite(questions(), candidate=lambda n, wrong=wrong: n % 10 >= wrong)
        said = judge(evidence(tested).model_copy(update={"unlearning": found}), LIMITS)
        assert said.outcome is expected
        assert said.reasons[-1].startswith("retracted facts: ")
        assert [result.fact for result in said.unlearning] == (["f"] if candidate else [])
