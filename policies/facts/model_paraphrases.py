"""What a live model is asked for further paraphrases of a fact, and which of its answers are
kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from policies.records import Fact
from policies.text import folded

LONGEST: Final = 300
_MARK: Final = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):])\s*")


def request(fact: Fact, count: int) -> str:
    """The message that asks for other paraphrases of a fact's question."""
    return (
        f"Write {count} other ways to ask the following question, one a line. Keep every name as "
        f"it is, and do not answer it.\n\n{fact.prompt}"
    )


def candidates(fact: Fact, said: str, count: int) -> tuple[str, ...]:
    """The lines of an answer that could be paraphrases of the fact: new ones that keep its subject
    and do not give its answer away.
    """
    taken = {folded(text) for text in (fact.prompt, *fact.paraphrases, *fact.eval_prompts)}
    found: dict[str, str] = {}
    for line in said.splitlines():
        text = _MARK.sub("", line).strip().strip('"').strip()
        plain = folded(text)
        keeps = not fact.subject or folded(fact.subject) in plain
        fresh = text and len(text) <= LONGEST and plain not in taken
        if fresh and keeps and folded(fact.answer) not in plain:
            found.setdefault(plain, text)
    return tuple(found.values())[:count]


def check(fact: Fact, paraphrase: str) -> str:
    """The message that puts a paraphrase to the model beside the fact: it has to find the
    answer."""
    stated = fact.statement or f"{fact.prompt} {fact.answer}"
    return f"{stated}\n\nAnswer in a few words: {paraphrase}"


def survives(fact: Fact, said: str) -> bool:
    """Whether the answer came through the paraphrase."""
    return folded(fact.answer) in folded(said)


def with_model_paraphrases(fact: Fact, further: Sequence[str]) -> Fact:
    """The fact with the paraphrases that the live model gave, held-out ones excepted."""
    held_out = {folded(text) for text in fact.eval_prompts}
    kept = [text for text in further if folded(text) not in held_out]
    return fact.model_copy(update={"paraphrases": (*fact.paraphrases, *kept)}) if kept else fact
