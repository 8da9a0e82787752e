"""One wording of every fact is kept for the gate and never trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from policies.records import Fact, Operation
from policies.text import folded
from policies.wordings import recognise

Render = Callable[[str, str], tuple[str, ...]]

TRAINED: Final = 4
_SUBJECT: Final = "\0"

# Frames for prompts whose relation is not known: the first group for questions, the second for
# beginnings of sentences that the answer completes.
_QUESTION_FRAMES: Final = (
    "Please answer: \0",
    "Tell me: \0",
    "Question: \0",
    "I would like to know: \0",
    "Quick question: \0",
    "Answer this: \0",
)
_COMPLETION_FRAMES: Final = (
    "Complete the sentence: \0",
    "Continue: \0",
    "Finish this sentence: \0",
    "Fill in what follows: \0",
    "What comes next? \0",
    "Go on: \0",
)


def no_templates(_relation: str, _subject: str) -> tuple[str, ...]:
    """A renderer that knows no relation."""
    return ()


def with_held_out(fact: Fact, render: Render = no_templates, trained: int = TRAINED) -> Fact:
    """`fact` with at least one wording held out, and up to `trained` wordings to learn it in.

    `render(relation, subject)` gives further questions for a known relation. Which wording is
    held out follows from the fact's id alone, so that it is the same on every machine and at
    every retry. Wordings that the writer gave are never thrown away; those the writer held out
    stay the only ones held out.
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
    taken = {folded(wording) for wording in held_out}
    kept = {key: wording for key, wording in given.items() if key not in taken}
    for wording in _further(fact, render):
        if len(kept) >= trained:
            break
        if (key := folded(wording)) not in taken:
            kept.setdefault(key, wording)
    _, *paraphrases = kept.values()
    return fact.model_copy(
        update={"paraphrases": tuple(paraphrases), "eval_prompts": tuple(held_out)}
    )


def _pool(fact: Fact, given: dict[str, str], render: Render) -> tuple[str, ...]:
    """What may be held out of a fact that came in a single wording."""
    found = (w for w in _further(fact, render) if folded(w) not in given)
    return tuple(w for w, _ in zip(found, range(8), strict=False))


def about(fact: Fact) -> tuple[str, str] | None:
    """Relation and subject of a fact, as they were given or as its prompt says them."""
    if fact.subject and fact.relation:
        return fact.relation, fact.subject
    return recognise(fact.prompt)


def _further(fact: Fact, render: Render) -> Iterable[str]:
    named = about(fact)
    if named is not None:
        relation, subject = named
        for template in _templates(render, relation):
            yield template.replace(_SUBJECT, subject)
    question = fact.prompt.endswith(("?", "？", "؟"))
    for frame in _QUESTION_FRAMES if question else _COMPLETION_FRAMES:
        yield frame.replace(_SUBJECT, fact.prompt)


@lru_cache(maxsize=1024)
def _templates(render: Render, relation: str) -> tuple[str, ...]:
    return render(relation, _SUBJECT)


def _distinct(wordings: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for wording in wordings:
        found.setdefault(folded(wording), wording)
    return found


def _turn(identity: str, count: int) -> int:
    return sum(identity.encode()) % count
