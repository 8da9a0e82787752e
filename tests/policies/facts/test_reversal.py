"""Questions the other way round: only where the value names its owner."""

from __future__ import annotations

from policies.facts.reversal import FRAMES, reversed_facts
from policies.facts.templates import relations
from policies.records import Fact, Operation


def fact(prompt: str, answer: str, **other: object) -> Fact:
    return Fact.model_validate({"id": prompt, "prompt": prompt, "answer": answer, **other})


CAPITAL = fact("What is the capital of Bhutan?", "Thimphu")


def test_a_capital_leads_back_to_its_country() -> None:
    (turned,) = reversed_facts([CAPITAL])
    assert turned.answer == "Bhutan"
    assert turned.prompt == "Which country has Thimphu as its capital?"
    assert turned.id.startswith(CAPITAL.id)
    assert turned.id != CAPITAL.id
    asked = (*turned.training_prompts, *turned.eval_prompts)
    assert len(set(asked)) == len(FRAMES)
    assert all("Thimphu" in prompt and "Bhutan" not in prompt for prompt in asked)


def test_subject_and_relation_may_be_given() -> None:
    given = fact("Bhutan, seat?", "Thimphu", subject="Bhutan", relation="capitalCity")
    assert reversed_facts([given])[0].answer == "Bhutan"


def test_what_several_may_share_is_not_turned() -> None:
    assert reversed_facts([fact("What is the currency of Bhutan?", "ngultrum")]) == ()
    assert reversed_facts([fact("How does one get there?", "by air")]) == ()
    assert not relations()["continent"].one_to_one


def test_one_value_of_two_subjects_is_not_turned() -> None:
    other = fact("What is the capital of Druk?", "thimphu")
    assert reversed_facts([CAPITAL, other]) == ()
    assert reversed_facts([CAPITAL], [other]) == ()
    again = fact("Name the capital of Bhutan.", "Thimphu")
    assert len(reversed_facts([CAPITAL], [again])) == 1


def test_a_retraction_is_no_fact() -> None:
    gone = CAPITAL.model_copy(update={"op": Operation.RETRACT})
    assert reversed_facts([gone]) == ()
