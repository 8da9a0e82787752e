"""What each step of a training run reads: new facts in turn, earlier text at random."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from adapters import models
from adapters.config import TrainConfig
from adapters.examples import Encoded, Variants, encode_example, one_of, pick
from adapters.plans import TrainPlan
from adapters.schedule import facts_in_step
from policies.records import Example

Pool = Sequence[Sequence[Encoded]]


@dataclass(frozen=True, slots=True)
class Pools:
    """Everything that a step draws from, as tokens in every paraphrase and form."""

    new: Pool
    old: Pool
    known: Pool
    reasoning: Pool
    odds: Sequence[float] = ()
    """How often each reasoning trace is drawn beside the others; all alike where there are none."""


def encode_pools(plan: TrainPlan, tokenizer: Any) -> Pools:
    """All text of a plan as tokens; of facts what is drawn, when it is drawn."""
    limit = plan.config.max_length
    return Pools(
        new=[Variants(tokenizer, one, limit=limit) for one in (*plan.facts, *plan.reversed_facts)],
        old=[Variants(tokenizer, one, limit=limit) for one in plan.replay],
        known=_encoded(plan.model_dir, plan.known, limit),
        reasoning=_encoded(plan.model_dir, plan.reasoning, limit),
    )


@lru_cache(maxsize=4)
def _encoded(model_dir: Path, examples: tuple[Example, ...], limit: int) -> Pool:
    """Examples as tokens: the same for every batch of a stream."""
    tokenizer = models.load_tokenizer(model_dir)
    return [encode_example(tokenizer, example, limit=limit) for example in examples]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The texts of one step: facts to learn, and texts on which nothing is to change."""

    new: list[Encoded]
    old: list[Encoded]
    known: list[Encoded]
    reasoning: list[Encoded]


def draw(pools: Pools, config: TrainConfig, seed: int, step: int) -> Drawn:
    """The texts of one step; they depend on seed and step alone, so a resumed run draws the same.

    New facts take turns so that all are seen equally often; what is replayed is drawn at random.
    """
    rng = random.Random(f"step:{seed}:{step}")
    count = facts_in_step(config, len(pools.new))
    new = [one_of(v, rng) for v in _turn(pools.new, count, seed, step)]
    old = pick(pools.old, min(config.replayed_per_step, math.ceil(len(pools.old) / 2)), rng)
    known = pick(pools.known, min(config.known_per_step, len(pools.known)), rng)
    most = min(config.reasoning_per_step, len(pools.reasoning) // 80)
    return Drawn(new, old, known, pick(pools.reasoning, most, rng, pools.odds))


def _turn(pool: Pool, count: int, seed: int, step: int) -> list[Sequence[Encoded]]:
    """`count` entries of an endless row of shuffled rounds through the pool."""
    if count >= len(pool):
        return list(pool)
    chosen: list[Sequence[Encoded]] = []
    position = step * count
    while len(chosen) < count:
        round_number, offset = divmod(position, len(pool))
        order = list(range(len(pool)))
        random.Random(f"round:{seed}:{round_number}").shuffle(order)
        part = order[offset : offset + count - len(chosen)]
        chosen += [pool[i] for i in part]
        position += len(part)
    return chosen
