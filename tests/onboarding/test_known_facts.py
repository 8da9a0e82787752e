"""Only a whole first sentence that gives the answer counts as knowing it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from daemon.onboarding.asking import BaseAnswer
from daemon.onboarding.known_facts import PARTS, SUITE, replay_lines, shares, surely_known
from daemon.onboarding.questions import FactQuestion

PERU = FactQuestion("Capital of Peru?", "Tell me the capital of Peru.", ("Lima",))


def known(*answers: BaseAnswer | None) -> bool:
    """Whether Peru's capital is known from these answers, the plain one and the other."""
    given = dict(zip((PERU.prompt, PERU.again), answers, strict=True))

    def ask(_stage: str, prompts: Sequence[str], _sample: int) -> list[BaseAnswer | None]:
        return [given[prompt] for prompt in prompts]

    return bool(surely_known(ask, [PERU]))


RIGHT = BaseAnswer("It is Lima. More follows", cut=True)


def test_a_whole_sentence_with_the_answer_twice_is_knowing() -> None:
    assert known(RIGHT, BaseAnswer("Lima"))


@pytest.mark.parametrize(
    "other",
    [
        BaseAnswer("It is Cusco. Lima is another city."),
        BaseAnswer("It is Lima, which lies on the coast and", cut=True),
        BaseAnswer("It is not Lima."),
        BaseAnswer(""),
        None,
    ],
)
def test_an_answer_that_comes_later_is_cut_off_denied_or_missing_is_not(
    other: BaseAnswer | None,
) -> None:
    assert not known(RIGHT, other)
    assert not known(other, RIGHT)


def test_both_paraphrases_are_replayed_each_in_the_base_s_own_sentence() -> None:
    said = {PERU.prompt: RIGHT, PERU.again: BaseAnswer("Lima, of course.")}
    (fact,) = surely_known(lambda _, prompts, __: [said[p] for p in prompts], [PERU])
    assert replay_lines([fact]) == [
        {"prompt": PERU.prompt, "answer": "It is Lima."},
        {"prompt": PERU.again, "answer": "Lima, of course."},
    ]


@pytest.mark.parametrize("count", [1, 40, 300, 900, 5000])
def test_the_suite_takes_no_more_than_the_gate_needs_and_replay_the_rest(count: int) -> None:
    found = shares(count)
    assert tuple(found) == PARTS
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["locality"] * count <= SUITE + 1e-9
    assert found["known-replay"] >= 0.35
