"""Batches of invented facts to learn, each with wordings that are never trained."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

from mini import corpus, world
from policies.heldout import with_held_out
from policies.records import Fact, content_id
from policies.wordings import relations, varied

Purpose = Literal["selection", "report"]
# Wordings of a fact with which the peers of one injection were tuned.
FEW: Final = 24
NEAR: Final = 2
FAR: Final = 2


@dataclass(frozen=True)
class Asked:
    """A wording of a fact that no training saw, and the fact as a sentence."""

    prompt: str
    answer: str
    statement: str = ""


@dataclass(frozen=True)
class FactBatch:
    """New facts, and what is asked about them: `near` wordings come from frames that the base met
    with other subjects, `far` ones from frames held out of everything."""

    facts: tuple[Fact, ...]
    near: tuple[Asked, ...]
    far: tuple[Asked, ...]


def batch(
    number: int,
    size: int,
    seed: int,
    purpose: Purpose,
    *,
    wordings: int = FEW,
    framed: bool = False,
) -> FactBatch:
    """`size` facts in four relations; another number, seed or purpose gives other facts.

    Each is to be learnt in up to `wordings` wordings; with `framed` half of them stand in a frame.
    """
    rng = random.Random(f"learning bench:{purpose}:{seed}:{number}")
    chosen = rng.sample([r for r in relations().values() if not r.held_out], 4)
    facts: list[Fact] = []
    near: list[Asked] = []
    far: list[Asked] = []
    for place, relation in enumerate(chosen):
        count = size // 4 + (place < size % 4)
        for made in world.fresh(relation, count, rng, corpus.MANY):
            asked = rng.sample(relation.questions(made.subject), NEAR + 1)
            fact = Fact(
                id=content_id(relation.name, made.subject),
                prompt=asked[0],
                answer=made.answer,
                subject=made.subject,
                relation=relation.name,
                eval_prompts=tuple(asked[1:]),
            )
            facts.append(with_held_out(fact, varied, wordings, framed=framed))
            beyond = rng.sample(relation.far(made.subject), FAR)
            statement = relation.states(made.subject, made.answer)[0]
            far += [Asked(wording, made.answer, statement) for wording in beyond]
            near += [Asked(wording, made.answer, statement) for wording in asked[1:]]
    return FactBatch(tuple(facts), tuple(near), tuple(far))
