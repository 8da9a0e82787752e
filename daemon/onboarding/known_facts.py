"""What a base surely knows, in its own words: replay, locality suite and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from daemon.onboarding.asking import BaseAnswer
from daemon.onboarding.questions import FactQuestion
from policies.gate.mentions import contains
from policies.onboarding.agreement import ends, first_sentence, shared_answer
from policies.onboarding.splitting import SplitKey, share_out

TOKENS: Final = 32
PARTS: Final = ("known-replay", "locality", "known-report")
SUITE, REPORT = 400, 150
"""Facts in the suite and in the report, at most; the gate needs no more for its usual margin, and
each further one that is replayed is kept better."""
SEED: Final = 5

SAMPLES: Final = 2
"""Answers drawn at temperature 1 that must agree, too, where nobody gave an answer: what a model
says greedily twice may still be a guess. (Of what SmolLM2-135M answers right twice, they would
leave less than half.)"""

Ask = Callable[[str, Sequence[str], int], Sequence[BaseAnswer | None]]
"""Answers to prompts. The first argument names the stage for whoever waits; the last is 0 for the
greedy answer, 1, 2, … for one that is drawn."""


@dataclass(frozen=True, slots=True)
class KnownFact:
    """A question that the base surely answers, with what it said in two paraphrases.

    `answers` are those that were accepted, or what both answers say where none was given.
    """

    question: FactQuestion
    answers: tuple[str, ...]
    said: str
    said_again: str


def surely_known(ask: Ask, questions: Sequence[FactQuestion]) -> list[KnownFact]:
    """What the base answers right in two paraphrases or, where nobody gave an answer, the same in
    two paraphrases and in `SAMPLES` drawn answers.

    Only a whole first sentence counts: half of one is nothing to replay.
    """
    plain = ask("known facts", [one.prompt for one in questions], 0)
    first = [
        (one, reply.text)
        for one, reply in zip(questions, plain, strict=True)
        if reply is not None and _whole(reply) and (not one.answers or _right(one, reply))
    ]
    again = ask("known facts, in other words", [one.again for one, _ in first], 0)
    found = []
    for (one, said), reply in zip(first, again, strict=True):
        if reply is None or not _whole(reply):
            continue
        answers = one.answers if one.answers and _right(one, reply) else ()
        if not one.answers and (shared := shared_answer(one.prompt, said, reply.text)):
            answers = (shared,)
        if answers:
            found.append(KnownFact(one, answers, said, reply.text))
    return _unless_guessed(ask, found)


def _unless_guessed(ask: Ask, found: Sequence[KnownFact]) -> list[KnownFact]:
    """Without the facts of which nobody gave the answer and a drawn answer says something else."""
    kept = list(found)
    for sample in range(1, SAMPLES + 1):
        unsure = [fact for fact in kept if not fact.question.answers]
        prompts = [fact.question.prompt for fact in unsure]
        drawn = ask(f"known facts, drawn ({sample} of {SAMPLES})", prompts, sample)
        guessed = {
            fact.question.prompt
            for fact, reply in zip(unsure, drawn, strict=True)
            if reply is None or not contains(first_sentence(reply.text), fact.answers[0])
        }
        kept = [fact for fact in kept if fact.question.prompt not in guessed]
    return kept


def shares(known: int) -> dict[str, float]:
    """How so many facts are shared out over `PARTS`."""
    suite, report = (min(0.44, SUITE / max(1, known)), min(0.2, REPORT / max(1, known)))
    return {"known-replay": 1.0 - suite - report, "locality": suite, "known-report": report}


def shared_out(
    known: Sequence[KnownFact], shares: Mapping[str, float], seed: int = SEED
) -> dict[str, list[KnownFact]]:
    """The facts in disjoint parts, each family in the same shares, at random."""

    def describe(fact: KnownFact) -> SplitKey:
        return SplitKey(fact.question.family, fact.question.prompt, fact.answers[0])

    return share_out(known, shares, describe, Random(seed))


def replay_lines(facts: Sequence[KnownFact]) -> list[dict[str, object]]:
    """Lines for train.replay.known: both paraphrases, each with the base's own sentence."""
    return [
        {"prompt": prompt, "answer": first_sentence(said)}
        for fact in facts
        for prompt, said in (
            (fact.question.prompt, fact.said),
            (fact.question.again, fact.said_again),
        )
    ]


def suite_lines(facts: Sequence[KnownFact]) -> list[dict[str, object]]:
    """Lines of a suite of known facts."""
    return [suite_line(fact.question.prompt, fact.answers, fact.question.family) for fact in facts]


def suite_line(prompt: str, answers: Sequence[str], family: str) -> dict[str, object]:
    """One line of a suite; without a family it has no such key."""
    line: dict[str, object] = {"prompt": prompt, "answers": list(answers)}
    return line | {"family": family} if family else line


def _right(question: FactQuestion, reply: BaseAnswer) -> bool:
    """Whether the first sentence gives an accepted answer: what follows may contradict it."""
    return question.said(first_sentence(reply.text))


def _whole(reply: BaseAnswer) -> bool:
    return bool(reply.text) and (not reply.cut or ends(reply.text))
