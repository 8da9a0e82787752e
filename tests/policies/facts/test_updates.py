"""Which known questions facts answer otherwise."""

from __future__ import annotations

import pytest

from policies.facts.templates import relations
from policies.facts.updates import Updates
from policies.records import Fact, Operation

CAPITAL = Fact(id="1", prompt="What is the capital of Chad?", answer="Moundou")
CODED = Fact(
    id="2",
    prompt="Code of Ada?",
    answer="11",
    paraphrases=("Ada: code?",),
    eval_prompts=("Which code has Ada?",),
)
NAMED = Fact(id="3", prompt="Who?", answer="Kim", subject="Chad", relation="head of state")
UPDATES = Updates((CAPITAL, CODED, NAMED))


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("code  of ada?", "7"),
        ("Ada: code?", "7"),
        ("Which code has Ada?", "7"),
        ("Tell me the capital of Chad.", "N'Djamena"),
        ("The capital of Chad is", "N'Djamena"),
    ],
)
def test_a_question_counts_by_its_paraphrase_or_by_what_it_is_about(
    prompt: str, answer: str
) -> None:
    assert UPDATES.change(prompt, answer)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Tell me the capital of Chad.", "moundou"),
        ("Tell me the capital of Peru.", "Lima"),
        ("What is the population of Chad?", "18 million"),
        ("Code of Bea?", "7"),
        ("Is Chad the capital of anything?", "no"),
    ],
)
def test_what_no_fact_answers_otherwise_stays_known(prompt: str, answer: str) -> None:
    assert not UPDATES.change(prompt, answer)


def test_every_paraphrase_of_a_relation_is_recognised() -> None:
    relation = relations()["capital"]
    for paraphrase in (*relation.questions("Chad"), *relation.completions("Chad")):
        assert UPDATES.change(paraphrase, "N'Djamena"), paraphrase


def test_a_retraction_answers_nothing() -> None:
    gone = CAPITAL.model_copy(update={"op": Operation.RETRACT})
    assert not Updates((gone,)).change("What is the capital of Chad?", "N'Djamena")
