"""The grader that fits is found in how the base answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from policies.gate.fitting import SAMPLE, choose_grader, fitting_sample
from policies.gate.records import ItemResult, Role, SuiteItem

ITEMS = tuple(
    SuiteItem(id=f"i{n}", prompt=f"What is {n}?", answer=f"answer {n}") for n in range(200)
)


def answered(brain: Callable[[int], str]) -> dict[str, ItemResult]:
    return {
        item.id: ItemResult(id=item.id, correct=False, output=brain(n))
        for n, item in enumerate(ITEMS[:100])
    }


def sentence(n: int) -> str:
    return f"Well, the thing that you ask about is answer {n}, as far as I know."


@pytest.mark.parametrize(
    ("role", "brain", "grader"),
    [
        (Role.LOCALITY, lambda n: f"answer {n}", "normalised"),
        (Role.LOCALITY, lambda n: f"answer {n}\nQuestion: and then?", "normalised"),
        (Role.LOCALITY, sentence, "contains"),
        (Role.LOCALITY, lambda n: sentence(n) if n % 5 else f"answer {n}", "contains"),
        (Role.LOCALITY, lambda n: f"answer {n}" if n % 50 else sentence(n), "normalised"),
        (Role.LOCALITY, lambda n: "no idea", "normalised"),
        (Role.FACTS, lambda n: "I am afraid that I do not know what you mean.", "contains"),
        (Role.REASONING, lambda n: f"so 1 + 1 is more than 1\n#### answer {n}", "final"),
        (Role.REASONING, lambda n: f"answer {n}", "normalised"),
    ],
)
def test_the_strict_grader_is_kept_unless_it_misses_what_base_knows(
    role: Role, brain: Callable[[int], str], grader: str
) -> None:
    choice = choose_grader(role, ITEMS, answered(brain))
    assert choice.grader == grader
    assert choice.because.startswith("of 100 answers of base, ")


def test_every_accepted_answer_counts_for_the_choice() -> None:
    items = tuple(item.model_copy(update={"answer": "x", "also": (item.answer,)}) for item in ITEMS)
    assert choose_grader(Role.LOCALITY, items, answered(sentence)).grader == "contains"


def test_the_sample_depends_on_the_suite_alone_and_is_bounded() -> None:
    assert fitting_sample(ITEMS, "f") == fitting_sample(ITEMS[::-1], "f")
    assert len(fitting_sample(ITEMS, "f")) == SAMPLE
