"""A fact is known where two answers say the same thing, however they put it."""

from __future__ import annotations

import pytest

from policies.onboarding.agreement import ends, first_sentence, shared_answer


@pytest.mark.parametrize(
    ("prompt", "one", "other", "shared"),
    [
        (
            "What is the capital of France?",
            "The capital of France is Paris.",
            "Paris is the capital of France. It lies on the Seine.",
            "Paris",
        ),
        ("Who designed Go?", "Robert Griesemer", "Robert Griesemer", "Robert Griesemer"),
        (
            "Who painted the Mona Lisa?",
            "The Mona Lisa was painted by Leonardo da Vinci.",
            "It is Leonardo da Vinci.",
            "Leonardo da Vinci",
        ),
        ("Is ice cold?", "Yes", "Yes, it is.", "Yes"),
        ("How many protons has iron?", "Iron has 26 protons.", "26", "26"),
    ],
)
def test_the_same_answer_in_other_words_is_shared(
    prompt: str, one: str, other: str, shared: str
) -> None:
    assert shared_answer(prompt, one, other) == shared


@pytest.mark.parametrize(
    ("prompt", "one", "other"),
    [
        ("What is the capital of France?", "It is Paris.", "It is Lyon."),
        # What both share is the question's or says nothing.
        ("What is a badger?", "A badger is a large bear.", "A badger is a large stone."),
        ("What is the capital of Mu?", "The capital of Mu is", "The capital of Mu is"),
        ("What is the capital of Mu?", "It is not Paris.", "It is Paris."),
        ("Who won?", "I'm sorry, but I cannot tell.", "I'm sorry, but I cannot tell."),
        ("Who won?", "As an AI, I have no view.", "As an AI, I have no view."),
        ("Who won?", "", ""),
    ],
)
def test_different_answers_refusals_and_empty_phrases_are_not(
    prompt: str, one: str, other: str
) -> None:
    assert shared_answer(prompt, one, other) is None


def test_a_long_text_is_no_answer() -> None:
    text = "alpha beta gamma delta epsilon zeta eta theta iota kappa"
    assert shared_answer("Say something?", text, text) is None


def test_only_a_whole_first_sentence_is_taken() -> None:
    assert first_sentence("It is 3.5 km. It is far") == "It is 3.5 km."
    assert first_sentence("It goes on and") == "It goes on and"
    assert ends("It is far. And")
    assert not ends("It goes on and")
