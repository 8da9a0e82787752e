"""One wording of every fact is kept for the gate and never trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from policies.records import Fact, Operation
from policies.text import folded

Render = Callable[[str, str], tuple[str, ...]]

# Frames for prompts whose relation is not known: the first group for questions, the second for
# beginnings of sentences that the answer completes.
_QUESTION_FRAMES: Final = (
    "Please answer: {}",
    "Tell me: {}",
    "Question: {}",
    "I would like to know: {}",
    "Quick question: {}",
)
_COMPLETION_FRAMES: Final = (
    "Complete the sentence: {}",
    "Continue: {}",
    "Finish this sentence: {}",
    "Fill in what follows: {}",
    "What comes next? {}",
)


def no_templates(_relation: str, _subject: str) -> tuple[str, ...]:
    """A renderer that knows no relation."""
    return ()


def with_held_out(fact: Fact, render: Render = no_templates, trained: int = 4) -> Fact:
    """`fact` with at least one wording held out, and up to `trained` wordings to learn it in.

    `render(relation, subject)` gives further questions for a known relation. Which wording is
    held out follows from the fact's id alone, so that it is the same on every machine and at
    every retry. Wordings that the writer gave are never thrown away; those the writer held out
    stay the only ones held out.
    """
    if fact.op is Operation.RETRACT:
        return fact
    given = _distinct((fact.prompt, *fact.paraphrases))
    extra = [w for w in _further(fact, render) if folded(w) not in given]
    if fact.eval_prompts:
        held_out = fact.eval_prompts
        kept = list(given.values())
    else:
        pool = list(given.values())[1:] or extra
        chosen = pool[_pick(fact.id, len(pool))]
        held_out = (chosen,)
        kept = [w for w in given.values() if w != chosen]
    taken = {folded(w) for w in (*held_out, *kept)}
    room = max(0, trained - len(kept))
    kept += [w for w in _distinct(tuple(extra)).values() if folded(w) not in taken][:room]
    return fact.model_copy(update={"paraphrases": tuple(kept[1:]), "eval_prompts": held_out})


def _further(fact: Fact, render: Render) -> tuple[str, ...]:
    rendered: tuple[str, ...] = ()
    if fact.subject and fact.relation:
        rendered = render(fact.relation, fact.subject)
    question = fact.prompt.rstrip().endswith(("?", "？", "؟"))
    frames = _QUESTION_FRAMES if question else _COMPLETION_FRAMES
    return (*rendered, *(frame.format(fact.prompt) for frame in frames))


def _distinct(wordings: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for wording in wordings:
        found.setdefault(folded(wording), wording)
    return found


def _pick(identity: str, count: int) -> int:
    return sum(identity.encode()) % count
