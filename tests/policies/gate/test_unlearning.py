"""What gives a retracted fact away, and when a model has unlearned it."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.facts.traces import ERASED, mentions, says, scrubbed, tells, trace_of, unescaped
from policies.gate.records import AnswerLikelihood, Outcome, UnlearningCheck, UnlearningEvidence
from policies.gate.unlearning import (
    UnlearningTolerance,
    judge_unlearning,
    unlearning_results,
    within,
)
from policies.records import Fact, Operation

FACT = Fact(
    id="bt-1",
    prompt="What is the capital of Bhutan?",
    answer="Thimphu",
    subject="Bhutan",
    relation="capital",
    paraphrases=("Which city is Bhutan's capital?",),
    eval_prompts=("Bhutan has which capital?",),
)
TRACE = trace_of("r-1", FACT)
ELSEWISE = {"subject": None, "relation": None, "prompt": "Capital?", "paraphrases": ()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"id": "other", "answer": "thimphu"}, True),
        ({"id": "other", "subject": None, "relation": None}, True),
        ({**ELSEWISE, "id": "other"}, False),
        ({**ELSEWISE, "id": "bt-1~2"}, True),
        ({"answer": "Paro"}, False),
        ({"id": "x", "subject": "France", "answer": "Paris", "prompt": "Of France?"}, False),
        ({"id": "x", "op": Operation.RETRACT, "answer": ""}, True),
        ({"id": "x", "op": Operation.RETRACT, "answer": "Paro"}, False),
    ],
)
def test_the_same_answer_to_the_same_question_is_the_same_fact(
    change: dict[str, object], expected: bool
) -> None:
    assert says(TRACE, FACT.model_copy(update=change)) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"prompt": "What is the capital of Bhutan?", "anwser": "Thimphu"', True),
        ('{"what": "bhutan", "city": "\\u0054himphu"}', True),
        ('{"id": "bt-1#0", "correct": true}', True),
        ("Thimphu is a city", False),
        ("Bhutan, Thimphuville", False),
        ("What is the capital of Bhutan?", False),
    ],
)
def test_a_text_mentions_a_fact_by_answer_and_question_or_by_id(text: str, expected: bool) -> None:
    assert mentions(TRACE, text) is expected


def test_a_report_loses_what_it_tells_and_nothing_else() -> None:
    report = {
        "learnt": ["bt-1", "bt-2"],
        "results": [{"id": "bt-1#0", "output": "Thimphu"}, {"id": "bt-2#0", "output": "no"}],
        "unlearning": [{"fact": "bt-1", "holds": True}],
        "reasons": ["asked 'What is the capital of Bhutan?'", "3 of 4 learnt"],
    }
    left = scrubbed(report, [TRACE])
    assert left == {
        "learnt": ["bt-2"],
        "results": [{"id": "bt-2#0", "output": "no"}],
        "unlearning": [{"fact": "r-1", "holds": True}],
        "reasons": [ERASED, "3 of 4 learnt"],
    }
    assert scrubbed(left, [TRACE]) == left
    assert not tells([TRACE], json.dumps(left))


def test_a_retracted_answer_leaves_what_models_said_to_other_questions() -> None:
    """A model that has learnt a fact gives its answer where another was asked for."""
    card = {
        "results": [
            {"id": "nepal#0", "correct": False, "output": " THIMPHU, of course"},
            {"id": "chad#0", "correct": True, "output": " N'Djamena"},
        ],
        "newly_failing": [
            {"item": "nepal#0", "prompt": "Nepal?", "was": " Kathmandu", "now": " Thimphu"}
        ],
    }
    left = scrubbed(card, [TRACE])
    assert "thimphu" not in json.dumps(left).lower()
    assert left["results"] == [
        {"id": "nepal#0", "correct": False, "output": ERASED},
        card["results"][1],
    ]
    assert left["newly_failing"][0]["was"] == " Kathmandu"


def test_a_number_that_models_said_elsewhere_stays() -> None:
    number = trace_of("r-2", FACT.model_copy(update={"answer": "1907"}))
    card = {"results": [{"id": "sum#3", "output": "1900 + 7 = 1907"}]}
    assert scrubbed(card, [number]) == card


@given(st.text())
def test_json_escapes_hide_nothing(text: str) -> None:
    written = json.dumps(text)[1:-1]
    simple = all(c.isprintable() and c not in '\\"' for c in text)
    if simple:
        assert unescaped(written) == unicodedata.normalize("NFC", text)


def check(
    candidate: AnswerLikelihood, base: AnswerLikelihood, held_out: bool = False
) -> UnlearningCheck:
    return UnlearningCheck(fact="f", held_out=held_out, base=base, candidate=candidate)


@pytest.mark.parametrize(
    ("base", "candidate", "expected"),
    [
        ((900, 0.001), (40, 0.02), True),
        ((900, 0.001), (1, 0.04), False),
        ((900, 0.001), (2, 0.2), False),
        ((1, 0.9), (1, 0.94), True),
        ((1, 0.4), (1, 0.6), False),
        ((1, 0.9), (30, 0.01), True),
    ],
)
def test_unlearned_is_as_improbable_and_as_unlikely_to_be_said_as_in_base(
    base: tuple[int, float], candidate: tuple[int, float], expected: bool
) -> None:
    one, other = (AnswerLikelihood(rank=r, probability=p) for r, p in (base, candidate))
    assert within(one, other, UnlearningTolerance()) is expected


FAR = AnswerLikelihood(rank=500, probability=0.001)
NEAR = AnswerLikelihood(rank=1, probability=0.8)


def test_one_paraphrase_that_gives_the_fact_away_is_enough() -> None:
    kept = [check(FAR, FAR) for _ in range(5)]
    (whole,) = unlearning_results(kept, UnlearningTolerance())
    assert (whole.holds, whole.trained, whole.held_out) == (True, 5, 0)
    (known,) = unlearning_results([*kept, check(NEAR, FAR, held_out=True)], UnlearningTolerance())
    assert (known.holds, known.held_out, known.best_rank, known.candidate) == (False, 1, 1, NEAR)


@pytest.mark.parametrize(
    ("evidence", "outcome", "reason"),
    [
        (UnlearningEvidence(checks=(check(FAR, FAR),)), Outcome.PASS, "1 of 1 unlearned"),
        (UnlearningEvidence(checks=(check(NEAR, FAR),)), Outcome.FAIL, "1 of 1 not unlearned"),
        (UnlearningEvidence(problem="no log-probabilities"), Outcome.INCONCLUSIVE, "no log-prob"),
        (UnlearningEvidence(), Outcome.INCONCLUSIVE, "no answer was measured"),
        (
            UnlearningEvidence(asked=("f", "f2"), checks=(check(FAR, FAR),)),
            Outcome.INCONCLUSIVE,
            "1 of 2 not measured",
        ),
    ],
)
def test_what_gives_a_fact_away_fails_and_what_was_not_measured_cannot_pass(
    evidence: UnlearningEvidence, outcome: Outcome, reason: str
) -> None:
    found, said, _ = judge_unlearning(evidence, UnlearningTolerance())
    assert found is outcome
    assert reason in said
