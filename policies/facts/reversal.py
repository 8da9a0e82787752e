"""Questions the other way round: from the value of a fact to what has it.

A model that learns "the capital of Bhutan is Thimphu" does not thereby know which country has
Thimphu as its capital (the reversal curse: Berglund and others, arXiv 2309.12288).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from policies.facts.heldout import about
from policies.facts.templates import Relation, find
from policies.records import Fact, Operation
from policies.text import folded

# {k} the kind of thing that has the value, {n} the noun of the value, {a} the value itself; the
# last one is held out.
FRAMES: Final = (
    "Which {k} has {a} as its {n}?",
    "{a} is the {n} of which {k}?",
    "Of which {k} is {a} the {n}?",
    "Name the {k} whose {n} is {a}.",
    "Tell me which {k} has the {n} {a}.",
    "What is the {k} whose {n} is {a}?",
)
SUFFIX: Final = "/reversed"


def reversed_facts(facts: Sequence[Fact], known: Sequence[Fact] = ()) -> tuple[Fact, ...]:
    """The questions that `facts` answer the other way round, as facts of their own.

    Only of relations whose value belongs to one subject, and only where no other of `facts` and
    `known` has the same value; the rest have no such question.
    """
    owners: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for fact in (*facts, *known):
        if (named := _named(fact)) is not None:
            relation, subject = named
            owners[relation.name, folded(fact.answer)].add(folded(subject))
    found = []
    for fact in facts:
        named = _named(fact)
        if named is not None and len(owners[named[0].name, folded(fact.answer)]) == 1:
            found.append(_turned(fact, *named))
    return tuple(found)


def _named(fact: Fact) -> tuple[Relation, str] | None:
    said = None if fact.op is Operation.RETRACT else about(fact)
    relation = None if said is None else find(said[0])
    if said is None or relation is None or not relation.one_to_one:
        return None
    return relation, said[1]


def _turned(fact: Fact, relation: Relation, subject: str) -> Fact:
    prompt, *others, held_out = (
        frame.format(k=relation.subject, n=relation.nouns[0], a=fact.answer) for frame in FRAMES
    )
    return Fact(
        id=f"{fact.id}{SUFFIX}",
        prompt=prompt,
        answer=subject,
        paraphrases=tuple(others),
        eval_prompts=(held_out,),
    )
