"""One policy says which paraphrases a fact has: at admission, in training, when it is forgotten."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.facts.paraphrases import ParaphrasePolicy
from policies.facts.templates import questions, varied
from policies.records import Fact, Operation
from policies.text import folded

ASKED: Final = "What is the capital of Bhutan?"
BHUTAN: Final = Fact(id="bt", prompt=ASKED, answer="Thimphu", subject="Bhutan", relation="capital")
MODELS: Final = ("Where does the government of Bhutan sit?", "Which town leads Bhutan?")


def policy(**changes: Any) -> ParaphrasePolicy:
    return ParaphrasePolicy.model_validate(
        {"source": "templates", "at_admission": 4, "at_training": 24, **changes}
    )


POLICIES: Final = st.builds(
    ParaphrasePolicy,
    source=st.sampled_from(["templates", "frames", "given"]),
    at_admission=st.integers(1, 12),
    at_training=st.integers(1, 60),
    prefixed=st.booleans(),
)
FACTS: Final = st.builds(
    Fact,
    id=st.text("abc123", min_size=1, max_size=8),
    prompt=st.sampled_from([ASKED, "Who leads Zed?", "The code of Ada is"]),
    answer=st.just("Thimphu"),
    subject=st.sampled_from([None, "Bhutan"]),
    relation=st.sampled_from([None, "capital", "no relation of ours"]),
    paraphrases=st.sampled_from([(), MODELS]),
    eval_prompts=st.sampled_from([(), ("Tell me Bhutan's capital.",)]),
)


@settings(deadline=None)
@given(POLICIES, POLICIES, FACTS, st.sampled_from([(), MODELS]))
def test_what_admission_held_out_is_never_trained_whatever_the_settings_become(
    then: ParaphrasePolicy, now: ParaphrasePolicy, fact: Fact, by_model: tuple[str, ...]
) -> None:
    admitted = then.for_admission(fact)
    assert admitted.eval_prompts
    held_out = {folded(text) for text in admitted.eval_prompts}
    for later in (now.for_training(admitted), now.for_unlearning(admitted, by_model)):
        assert later.eval_prompts == admitted.eval_prompts
        assert held_out.isdisjoint(map(folded, later.training_prompts))
        assert set(admitted.training_prompts) <= set(later.training_prompts)


def test_the_source_says_where_paraphrases_come_from() -> None:
    by_template = {folded(text) for text in varied("capital", "Bhutan")}
    templates = policy().for_training(policy().for_admission(BHUTAN))
    assert len(templates.training_prompts) == 24
    assert {folded(text) for text in templates.training_prompts} <= by_template
    frames = policy(source="frames").for_admission(BHUTAN)
    assert len(frames.training_prompts) == 4
    assert all(ASKED in text for text in (*frames.training_prompts, *frames.eval_prompts))
    given_only = policy(source="given")
    assert given_only.for_training(given_only.for_admission(BHUTAN)).training_prompts == (ASKED,)


def test_a_fact_is_admitted_with_a_few_questions_and_trained_in_more() -> None:
    admitted = policy().for_admission(BHUTAN)
    assert len(admitted.training_prompts) == 4
    assert set(admitted.training_prompts) <= set(questions("capital", "Bhutan"))
    assert len(policy(at_training=9).for_training(admitted).training_prompts) == 9


def test_half_of_those_by_templates_are_prefixed_if_that_is_asked_for() -> None:
    admitted = policy().for_admission(BHUTAN)
    plain = policy().for_training(admitted).training_prompts
    prefixed = policy(prefixed=True).for_training(admitted).training_prompts
    assert len(plain) == len(prefixed) == 24
    added = [text for text in prefixed if text not in varied("capital", "Bhutan")]
    assert 8 <= len(added) <= 12


def test_unlearning_is_asked_in_every_paraphrase_that_was_trained() -> None:
    admitted = policy().for_admission(BHUTAN)
    asked = policy().for_unlearning(admitted, MODELS).training_prompts
    assert {*admitted.training_prompts, *MODELS} <= set(asked)
    learnt = admitted.model_copy(update={"paraphrases": (*admitted.paraphrases, *MODELS)})
    assert asked == policy().for_training(learnt).training_prompts


def test_a_retraction_needs_no_paraphrases() -> None:
    gone = Fact(id="x", prompt="", answer="", op=Operation.RETRACT)
    assert policy().for_admission(gone) == policy().for_training(gone) == gone


@pytest.mark.parametrize(
    ("requests", "each", "facts"), [(200, 4, 40), (3, 4, 0), (200, 0, 0), (0, 4, 0)]
)
def test_the_live_model_is_asked_about_as_many_facts_as_the_budget_allows(
    requests: int, each: int, facts: int
) -> None:
    assert policy(by_model=each, model_requests=requests).facts_by_model == facts
