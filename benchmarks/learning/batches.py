"""Batches of invented facts to learn, each with paraphrases that are never trained."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, Literal, NamedTuple

from mini import corpus, names, world
from mini.splits import Split
from policies.facts.heldout import with_held_out
from policies.facts.templates import relations, varied
from policies.records import Fact, content_id

Purpose = Literal["selection", "report"]
# Paraphrases of a fact with which the baselines of one injection were tuned.
FEW: Final = 24
NEAR: Final = 2
OOD: Final = 2


@dataclass(frozen=True)
class AskedParaphrase:
    """A paraphrase of a fact that no training saw, and the fact as a sentence."""

    prompt: str
    answer: str
    statement: str = ""


class FactBatch(NamedTuple):
    """New facts, and what is asked about them: `near` paraphrases come from frames that the base
    met with other subjects, `ood` ones from frames held out of everything."""

    facts: tuple[Fact, ...]
    near: tuple[AskedParaphrase, ...]
    ood: tuple[AskedParaphrase, ...]


def batch(
    number: int,
    size: int,
    seed: int,
    purpose: Purpose,
    *,
    paraphrases: int = FEW,
    prefixed: bool = False,
) -> FactBatch:
    """`size` facts in four relations; another number, seed or purpose gives other facts.

    Each is learnt in up to `paraphrases` paraphrases, half of them `prefixed` if asked."""
    rng = random.Random(f"learning bench:{purpose}:{seed}:{number}")
    chosen = rng.sample([r for r in relations().values() if not r.held_out], 4)
    parts = []
    for place, relation in enumerate(chosen):
        count = size // 4 + (place < size % 4)
        made = world.fresh(relation, count, rng, corpus.MANY)
        parts.append(_with_paraphrases(made, rng, paraphrases, prefixed=prefixed))
    return FactBatch(*(tuple(chain.from_iterable(kind)) for kind in zip(*parts, strict=True)))


def contradicting(
    number: int,
    size: int,
    seed: int,
    purpose: Purpose,
    *,
    paraphrases: int = FEW,
    prefixed: bool = False,
) -> FactBatch:
    """As `batch`, but new answers to facts that the base knows and that may be replayed."""
    rng = random.Random(f"learning bench, contradicting:{purpose}:{seed}:{number}")
    known = [fact for fact in world.known() if fact.split is Split.REPLAY]
    made = []
    for fact in rng.sample(known, size):
        answer = fact.answer
        while answer == fact.answer:
            answer = names.answer(relations()[fact.relation].answer, rng)
        made.append(replace(fact, answer=answer))
    return _with_paraphrases(made, rng, paraphrases, prefixed=prefixed)


def _with_paraphrases(
    made: Sequence[world.Invented], rng: random.Random, paraphrases: int, *, prefixed: bool
) -> FactBatch:
    facts: list[Fact] = []
    near: list[AskedParaphrase] = []
    ood: list[AskedParaphrase] = []
    for one in made:
        relation = relations()[one.relation]
        asked = rng.sample(relation.questions(one.subject), NEAR + 1)
        fact = Fact(
            id=content_id(one.relation, one.subject),
            prompt=asked[0],
            answer=one.answer,
            subject=one.subject,
            relation=one.relation,
            eval_prompts=tuple(asked[1:]),
        )
        facts.append(with_held_out(fact, varied, paraphrases, prefixed=prefixed))
        beyond = rng.sample(relation.ood(one.subject), OOD)
        statement = relation.states(one.subject, one.answer)[0]
        ood += [AskedParaphrase(paraphrase, one.answer, statement) for paraphrase in beyond]
        near += [AskedParaphrase(paraphrase, one.answer, statement) for paraphrase in asked[1:]]
    return FactBatch(tuple(facts), tuple(near), tuple(ood))
