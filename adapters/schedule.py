"""The number of steps of a run, and its learning rate and KL weights over them.

Steps at the defaults of `TrainConfig`, alone and beside 360 replayed facts:

| new facts | replayed | small batch | large batch |
|---|---|---|---|
| 1 | 0 | 64 | 64 |
| 12 | 0 | 108 | 108 |
| 36 | 0 | 150 | 181 |
| 144 | 0 | 450 | 181 |
| 500 | 0 | 2000 | 1285 |
| 1 | 360 | 447 | 540 |
| 12 | 360 | 447 | 540 |
| 36 | 360 | 447 | 540 |
| 144 | 360 | 1342 | 540 |
| 500 | 360 | 2000 | 1285 |
"""

from __future__ import annotations

import math
from typing import Final

from adapters.config import TrainConfig

REFERENCE_WIDTH: Final = 192


def steps_needed(config: TrainConfig, facts: int, replayed: int = 0) -> int:
    """Steps to learn `facts` new facts beside `replayed` earlier ones.

    min(min_steps + steps_per_fact · all facts, base_steps), or as many as `epochs` of the new facts
    take if that is more; times 1 + steps_per_doubling · log₂(facts / large_run_facts) for the
    larger of the two numbers of facts; at most max_steps.
    """
    if config.steps is not None:
        return config.steps
    replayed = replayed if config.replayed_per_step else 0
    usual = min(config.min_steps + config.steps_per_fact * (facts + replayed), config.base_steps)
    needed = math.ceil(config.epochs * facts / facts_in_step(config, facts))
    doublings = math.log2(
        max(1.0, facts / config.large_run_facts, replayed / config.large_run_facts)
    )
    longer = 1 + config.steps_per_doubling * doublings
    return min(round(max(usual, needed) * longer), config.max_steps)


def facts_in_step(config: TrainConfig, facts: int) -> int:
    """How many of `facts` new facts each step takes in turn.

    Replay costs the same in every step: with more facts in each, many facts need fewer steps.
    """
    part = min(facts // (3 * config.sub_steps), 2 * config.new_per_step)
    return min(facts, max(config.new_per_step, part))


def kl_share(config: TrainConfig, facts: int, replayed: int = 0) -> float:
    """The share of both KL weights that is left beside so many new and replayed facts, in (0, 1].

    The loss of a step is divided by its new facts alone, so the KL terms weigh the same against a
    replayed fact beside ten new ones or five hundred.
    """
    counted = min(facts + replayed, config.sub_steps * facts_in_step(config, facts))
    return min(1.0, config.kl_decay_facts / counted)


def peak_rate(config: TrainConfig, hidden_size: int) -> float:
    """The config's learning rate, or one that falls with the model's width."""
    if config.learning_rate is not None:
        return config.learning_rate
    return config.reference_rate * REFERENCE_WIDTH / float(hidden_size)


def rate_share(
    config: TrainConfig, step: int, steps: int, stopped: int | None, end: int | None
) -> float:
    """Share of the peak rate at a step: linear warm-up, then linear decay to 0 at `steps`.

    Where an early end was decided at step `stopped`, the decay is steeper, to 0 at `end`.
    """
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    if end is not None and stopped is not None:
        at_stop = (steps - stopped) / steps
        return warm * at_stop * (end - step) / (end - stopped + 1)
    return warm * (steps - step) / steps
