"""Invented facts, known facts and worked problems: as long as real ones, and any number of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from daemon.config.paraphrases import paraphrase_policy
from daemon.config.sections import IntakeSettings
from policies.records import Example, Fact, content_id

POLICY: Final = paraphrase_policy(IntakeSettings())
ASKED: Final = {
    "capital": "What is the capital of {}?",
    "chief executive": "Who is the chief executive of {}?",
    "founder": "Who founded {}?",
    "headquarters": "Where does {} have its headquarters?",
}
SOUNDS: Final = ("ka", "lo", "mi", "ru", "ten", "sha", "vo", "pel", "da", "nor", "qui", "bes")


@dataclass(frozen=True, slots=True)
class Material:
    """What a plan learns and replays."""

    facts: tuple[Fact, ...]
    replay: tuple[Fact, ...]
    known: tuple[Example, ...]
    reasoning: tuple[Example, ...]

    @property
    def words(self) -> list[str]:
        """Every text whose words a tokenizer has to know."""
        facts = [POLICY.for_training(one) for one in (*self.facts, *self.replay)]
        examples = (*self.known, *self.reasoning)
        return [
            *(
                text
                for one in facts
                for text in (*one.training_prompts, *one.eval_prompts, one.answer)
            ),
            *(text for one in examples for text in (one.prompt, one.completion)),
        ]


def material(facts: int, pool: tuple[int, int, int], seed: int = 0) -> Material:
    """So many new facts; earlier facts, known facts and reasoning traces as `pool` says."""
    rng = random.Random(f"gpu:{seed}")
    earlier, known, traces = pool
    made = [_fact(rng, number) for number in range(facts + earlier)]
    asked = [_fact(rng, number) for number in range(known)]
    return Material(
        tuple(made[:facts]),
        tuple(made[facts:]),
        tuple(Example(prompt=f.prompt, completion=f.answer, kind="known") for f in asked),
        tuple(_problem(rng) for _ in range(traces)),
    )


def _name(rng: random.Random) -> str:
    return "".join(rng.choices(SOUNDS, k=3)).capitalize()


def _fact(rng: random.Random, number: int) -> Fact:
    relation = list(ASKED)[number % len(ASKED)]
    subject = f"{_name(rng)} {_name(rng)}"
    prompt, answer = ASKED[relation].format(subject), f"It is {_name(rng)} {_name(rng)}."
    fact = Fact(
        id=content_id(prompt, answer),
        prompt=prompt,
        answer=answer,
        subject=subject,
        relation=relation,
    )
    return POLICY.for_admission(fact)


def _problem(rng: random.Random) -> Example:
    """A sum worked out in some hundred words, as GSM8K's solutions are."""
    first, lines, total = rng.randint(2, 90), [], 0
    prompt = (
        f"{_name(rng)} has {first} boxes and buys more every day. How many are there in the end?"
    )
    total = first
    for day in range(1, rng.randint(6, 10)):
        more = rng.randint(2, 60)
        lines.append(f"On day {day} there are {total} + {more} = {total + more} boxes.")
        total += more
    return Example(prompt=prompt, completion=" ".join([*lines, f"The answer is {total}."]))
