"""A suite that cannot fail proves nothing: every way to pass on nothing, one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from policies.gate.evidence import Control, SuiteEvidence, SuiteQuestions
from policies.gate.records import ItemResult, Outcome, Role, SuiteItem, SuiteScore
from policies.gate.stability import Stability
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

WARN = LIMITS.model_copy(update={"blind_suites": "warn"})


def known(
    right: Callable[[int], bool] = always,
    *,
    count: int = 500,
    control: Control | None = None,
    cut: bool = False,
    **asked: Any,
) -> SuiteEvidence:
    """A locality suite on which candidate and base have the same items right."""
    made = questions(Role.LOCALITY, count).model_copy(update=asked)
    found = suite(made, candidate=right, base=right)
    if cut:
        found = found.model_copy(
            update={"candidate": _cut(found.candidate), "base": _cut(found.base)}
        )
    return found.model_copy(update={"controls": {"base": control} if control else {}})


def _cut(score: SuiteScore | None) -> SuiteScore | None:
    assert score is not None
    results = tuple(one.model_copy(update={"cut": True}) for one in score.results)
    return score.model_copy(update={"results": results})


def never(_: int) -> bool:
    return False


def test_answers_that_live_still_gives_are_no_reason_to_wait() -> None:
    """The first candidate after a fact gave way: live says the old answer, the candidate not."""
    made = questions(Role.RETENTION, 1).model_copy(
        update={"grader": "not normalised", "complete": True}
    )
    seen = only(verdict(suite(made, candidate=always, live=never), live="revision 1"))
    assert not seen.blind
    assert seen.outcome is Outcome.PASS
    relapsed = only(verdict(suite(made, candidate=never, live=always), live="revision 1"))
    assert relapsed.outcome is not Outcome.PASS


BLIND = {
    "base knows nothing": (known(never), "base has 0.0 % right"),
    "base knows too little": (
        known(lambda n: n % 12 == 0),
        "too little to lose for a margin of 5 pp",
    ),
    "anything is right": (
        known(control=Control(items=256, chance=0.98)),
        "98.0 % with its answers to other questions",
    ),
    "all answers are the same": (
        known(lambda n: n % 10 > 0, control=Control(items=256, chance=0.86)),
        "use items whose answers differ",
    ),
    "a grader that reads nothing in sentences": (
        known(lambda n: n % 5 == 0, grader="exact", control=Control(items=256, mentioned=200)),
        'set its grader to "contains" or "auto"',
    ),
    "all answers are cut off": (known(cut=True, grader="final"), "raise max_tokens"),
    "base knows little since it is cut off": (
        known(never, cut=True, grader="contains"),
        "100.0 % of the answers were cut off: raise max_tokens",
    ),
    "too few items can differ": (
        known(lambda n: n < 10, count=80),
        "not even the loss of them all would show",
    ),
}


@pytest.mark.parametrize("name", BLIND)
def test_a_blind_suite_never_passes_and_says_what_to_do(name: str) -> None:
    blind, reason = BLIND[name]
    said = verdict(REASONING, blind)
    assert [s.outcome for s in said.suites] == [Outcome.PASS, Outcome.INCONCLUSIVE]
    assert said.outcome is Outcome.INCONCLUSIVE
    assert reason in said.suites[1].blind
    assert said.reasons[1].startswith("locality: blind: ")
    assert said.suites[1].sees is None


@pytest.mark.parametrize("name", BLIND)
def test_by_policy_a_blind_suite_is_a_warning_and_counts_for_nothing(name: str) -> None:
    said = verdict(REASONING, BLIND[name][0], limits=WARN)
    assert said.suites[1].outcome is Outcome.INCONCLUSIVE
    assert said.outcome is Outcome.PASS
    assert said.reasons[1].startswith("locality: warning: blind: ")


def test_a_warning_never_stands_in_for_a_required_suite() -> None:
    nothing = suite(questions(count=800), candidate=never, base=never)
    said = verdict(nothing, limits=WARN)
    assert said.outcome is Outcome.INCONCLUSIVE
    assert "every suite of the role 'reasoning' is blind" in said.reasons[-1]


SEEING = {
    "base knows everything": known(),
    "base knows a fifth": known(lambda n: n % 5 == 0),
    "half would pass by chance": known(control=Control(items=256, chance=0.5)),
    "some are cut off": known(cut=True, grader="contains"),
    "a strict grader that misses a few": known(
        lambda n: n % 10 > 0, grader="normalised", control=Control(items=256, mentioned=20)
    ),
}


@pytest.mark.parametrize("name", SEEING)
def test_always_inconclusive_is_no_way_out(name: str) -> None:
    said = verdict(REASONING, SEEING[name])
    assert said.outcome is Outcome.PASS, said.reasons
    seen = said.suites[1]
    assert not seen.blind
    assert seen.sees is not None
    assert 0 < seen.sees < 0.1
    assert seen.sees_items == 500


def test_a_loss_that_shows_fails_a_blind_suite_too() -> None:
    some = questions(Role.LOCALITY, 2000).model_copy(update={"grader": "exact"})
    lost = suite(some, candidate=never, base=lambda n: n % 5 == 0).model_copy(
        update={"controls": {"base": Control(items=256, mentioned=200)}}
    )
    assert verdict(REASONING, lost).outcome is Outcome.FAIL


def test_base_may_know_nothing_where_live_does() -> None:
    asked = questions(count=800)
    found = suite(asked, base=never, live=always)
    assert verdict(found, live="palora-000001").outcome is Outcome.PASS


def test_a_suite_that_base_cannot_do_at_all_is_not_asked_to_its_end() -> None:
    asked = questions(Role.LOCALITY, 2000)
    begun = SuiteEvidence(
        questions=asked, candidate=score(asked, never, 128), base=score(asked, never, 128)
    )
    assert "locality" not in next_items(evidence(begun), LIMITS)
    able = begun.model_copy(update={"base": score(asked, lambda n: n == 3, 128)})
    assert "locality" in next_items(evidence(able), LIMITS)


def test_a_questions_copies_are_no_further_evidence() -> None:
    """A suite of one question under 500 ids is one observation."""
    asked = questions(Role.LOCALITY, 500)
    same = asked.model_copy(
        update={"items": tuple(i.model_copy(update={"prompt": "Who? "}) for i in asked.items)}
    )
    said = verdict(REASONING, suite(same))
    assert said.suites[1].outcome is Outcome.INCONCLUSIVE


def test_the_only_earlier_fact_may_not_be_lost() -> None:
    """Of a handful one may be lost, but never all that live knows."""
    for count, lost, outcome in (
        (1, 0, Outcome.PASS),
        (1, 1, Outcome.FAIL),
        (2, 1, Outcome.PASS),
        (2, 2, Outcome.FAIL),
    ):
        asked = questions(Role.RETENTION, count).model_copy(update={"complete": True})
        few = suite(asked, candidate=lambda n, lost=lost: n >= lost, live=always)
        said = verdict(suite(questions(), live=always), few, live="palora-000002")
        assert said.suites[1].outcome is outcome, (count, lost)


def test_earlier_facts_that_live_has_all_wrong_prove_nothing() -> None:
    lenient = LIMITS.model_copy(update={"retention_floor": None})
    asked = questions(Role.RETENTION, 30).model_copy(update={"complete": True})
    gone = suite(asked, candidate=never, live=never)
    said = verdict(suite(questions(), live=always), gone, live="x", limits=lenient)
    assert said.suites[1].outcome is Outcome.INCONCLUSIVE
    assert "live has none of the 30 right" in said.suites[1].blind


def test_a_drift_of_exactly_nothing_is_no_pass() -> None:
    text = SuiteEvidence(questions=questions(Role.DRIFT, 3), drift=0.0)
    said = verdict(REASONING, text)
    assert said.suites[1].outcome is Outcome.INCONCLUSIVE
    assert "was the adapter applied?" in said.suites[1].blind


# --- the candidate is what it should be -----------------------------------------------------------


def alike(asked: SuiteQuestions, live: bool = False) -> SuiteEvidence:
    same = score(asked, always)
    return SuiteEvidence(questions=asked, candidate=same, base=same, live=same if live else None)


def test_a_candidate_that_answers_as_its_baseline_to_the_letter_never_passes() -> None:
    said = verdict(alike(questions()), alike(questions(Role.LOCALITY)))
    assert {s.outcome for s in said.suites} == {Outcome.PASS}
    assert said.outcome is Outcome.INCONCLUSIVE
    assert "gives base's answer, character by character, to all 1600 questions" in said.reasons[-1]
    assert "was its adapter applied?" in said.reasons[-1]


def test_one_answer_in_other_words_shows_that_it_is_another_model() -> None:
    asked = questions()
    before = score(asked, always)
    first = before.results[0].model_copy(update={"output": "in other words"})
    other = before.model_copy(update={"results": (first, *before.results[1:])})
    found = SuiteEvidence(questions=asked, candidate=other, base=before)
    assert verdict(found).outcome is Outcome.PASS


@pytest.mark.parametrize("twin", ["base", "live"])
def test_a_candidate_with_the_weights_of_its_baseline_never_passes(twin: Any) -> None:
    reasoning = suite(questions(), live=always)
    found = evidence(reasoning, live="palora-000001")
    assert judge(found, LIMITS).outcome is Outcome.PASS
    said = judge(found.model_copy(update={"twins": ((twin, "candidate"),)}), LIMITS)
    assert said.outcome is Outcome.INCONCLUSIVE
    assert f"the candidate is {twin} itself" in said.reasons[-1]


def test_earlier_facts_are_not_compared_with_a_live_that_is_base() -> None:
    reasoning = suite(questions(), live=always)
    earlier = suite(questions(Role.RETENTION), live=always)
    found = evidence(reasoning, earlier, live="x").model_copy(update={"twins": (("base", "live"),)})
    said = judge(found, LIMITS)
    assert said.outcome is Outcome.INCONCLUSIVE
    assert "live is base itself" in said.reasons[-1]


# --- what is told ---------------------------------------------------------------------------------


def test_each_suite_tells_its_flips_its_grader_and_its_hash() -> None:
    asked = questions().model_copy(update={"grader": "contains", "grader_because": "it fits"})
    aa = Stability(items=200, worse=1, better=0, changed=9)
    said = only(verdict(suite(asked, aa=aa)))
    assert said.flips is not None
    assert (said.flips.items, said.flips.flipped, said.flips.changed) == (200, 1, 9)
    assert (said.grader, said.grader_because) == ("contains", "it fits")
    assert said.fingerprint == asked.fingerprint


def test_changed_wording_is_counted_beside_flips() -> None:
    from policies.gate.stability import stability

    one = {"a": ItemResult(id="a", correct=True, output="x")}
    two = {"a": ItemResult(id="a", correct=True, output="y")}
    assert stability(one, two) == Stability(items=1, worse=0, better=0, changed=1)


def test_several_answers_are_one_item() -> None:
    item = SuiteItem(id="i", prompt="p", answer="x", also=("y",))
    assert SuiteItem.model_validate_json(item.model_dump_json()) == item
