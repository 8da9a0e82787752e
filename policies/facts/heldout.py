"""One paraphrase of every fact is kept for the gate and never trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import chain
from typing import Final

from policies.facts.templates import recognise
from policies.records import Fact, Operation
from policies.text import folded

Render = Callable[[str, str], tuple[str, ...]]

TRAINED: Final = 4
_SUBJECT: Final = "\0"
_ENDS: Final = ("?", "？", "؟", ".", "。", "!")

# What a paraphrase may stand in: a question, or the beginning of a sentence that the answer
# completes.
_QUESTION_FRAMES: Final = (
    "Please answer: \0",
    "Tell me: \0",
    "Question: \0",
    "I would like to know: \0",
    "Quick question: \0",
    "Answer this: \0",
    "A friend of mine asks: \0",
    "Please help me. \0",
    "For a quiz: \0",
    "\0 I cannot recall it.",
    "I have a question. \0",
    "\0 Answer briefly.",
    "My teacher wants to know this. \0",
    "When asked, what do you say? \0",
    "One more thing. \0",
    "Let us see. \0",
)
_COMPLETION_FRAMES: Final = (
    "Complete the sentence: \0",
    "Continue: \0",
    "Finish this sentence: \0",
    "Fill in what follows: \0",
    "What comes next? \0",
    "Go on: \0",
    "As everyone knows, \0",
    "I have read that \0",
    "People say that \0",
    "Remember: \0",
    "In short, \0",
    "We learnt that \0",
)
# Which of every eight further paraphrases stand in a frame: half of the questions and of the
# beginnings, whatever their turns.
_PREFIXED: Final = frozenset({1, 3, 4, 6})


def no_templates(_relation: str, _subject: str) -> tuple[str, ...]:
    """A renderer that knows no relation."""
    return ()


def with_held_out(
    fact: Fact, render: Render = no_templates, trained: int = TRAINED, *, prefixed: bool = False
) -> Fact:
    """`fact` with at least one paraphrase held out, and up to `trained` paraphrases to learn it in.

    `render(relation, subject)` gives further questions for a known relation; with `prefixed` half
    of them are learnt in a frame. Which paraphrase is held out follows from the fact's id alone, so
    that it is the same on every machine and at every retry. Paraphrases that the writer gave are
    never thrown away; those the writer held out stay the only ones held out.
    """
    if fact.op is Operation.RETRACT:
        return fact
    if fact.eval_prompts and len(fact.paraphrases) + 1 >= trained:
        return fact
    given = _distinct((fact.prompt, *fact.paraphrases))
    if fact.eval_prompts:
        held_out = fact.eval_prompts
    else:
        pool = tuple(given.values())[1:] or _pool(fact, given, render)
        held_out = (pool[_turn(fact.id, len(pool))],)
    taken = {folded(paraphrase) for paraphrase in held_out}
    kept = {key: paraphrase for key, paraphrase in given.items() if key not in taken}
    for plain, paraphrase in _learnable(fact, render, prefixed=prefixed):
        if len(kept) >= trained:
            break
        if taken.isdisjoint({folded(plain), key := folded(paraphrase)}):
            kept.setdefault(key, paraphrase)
    _, *paraphrases = kept.values()
    return fact.model_copy(
        update={"paraphrases": tuple(paraphrases), "eval_prompts": tuple(held_out)}
    )


def _pool(fact: Fact, given: dict[str, str], render: Render) -> tuple[str, ...]:
    """What may be held out of a fact that came in a single paraphrase."""
    further = chain(rendered(fact, render), _around(fact.prompt))
    found = (paraphrase for paraphrase in further if folded(paraphrase) not in given)
    return tuple(w for w, _ in zip(found, range(8), strict=False))


def about(fact: Fact) -> tuple[str, str] | None:
    """Relation and subject of a fact, as they were given or as its prompt says them."""
    if fact.subject and fact.relation:
        return fact.relation, fact.subject
    return recognise(fact.prompt)


def _learnable(fact: Fact, render: Render, *, prefixed: bool) -> Iterable[tuple[str, str]]:
    """Further paraphrases by themselves, and as they are learnt."""
    turns = _PREFIXED if prefixed else frozenset()
    for number, plain in enumerate(rendered(fact, render)):
        yield plain, _prefixed(plain, number // 2) if number % 8 in turns else plain
    for paraphrase in _around(fact.prompt):
        yield paraphrase, paraphrase


def rendered(fact: Fact, render: Render) -> Iterable[str]:
    """All the questions that a renderer makes of what a fact is about; none where it knows none."""
    named = about(fact)
    if named is not None:
        relation, subject = named
        for template in _templates(render, relation):
            yield template.replace(_SUBJECT, subject)


def _around(prompt: str) -> Iterable[str]:
    for frame in _frames(prompt):
        yield frame.replace(_SUBJECT, prompt)


def _frames(paraphrase: str) -> tuple[str, ...]:
    return _QUESTION_FRAMES if paraphrase.endswith(_ENDS) else _COMPLETION_FRAMES


def _prefixed(paraphrase: str, turn: int) -> str:
    frames = _frames(paraphrase)
    before, _, after = frames[turn % len(frames)].partition(_SUBJECT)
    if before.rstrip()[-1:].isalpha() or before.endswith(", "):
        paraphrase = re.sub(r"^The ", "the ", paraphrase)
    return f"{before}{paraphrase}{after}"


@lru_cache(maxsize=1024)
def _templates(render: Render, relation: str) -> tuple[str, ...]:
    return render(relation, _SUBJECT)


def _distinct(paraphrases: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for paraphrase in paraphrases:
        found.setdefault(folded(paraphrase), paraphrase)
    return found


def _turn(identity: str, count: int) -> int:
    return sum(identity.encode()) % count
