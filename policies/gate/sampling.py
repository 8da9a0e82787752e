"""What a candidate is asked: a sample of earlier facts, and a suite's items in their order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

from policies.gate.records import ItemResult, Role, SuiteItem
from policies.records import Operation, Outline, content_id


def draw_earlier(
    by_batch: Mapping[str, Sequence[Outline]], new: Sequence[Outline], size: int, seed: int
) -> tuple[tuple[str, Outline], ...]:
    """At most `size` pairs (batch, fact) of the valid facts learnt before, in a random order.

    Facts near to a new one (the same key, else the same subject) come first, up to half of the
    sample, because a contradiction shows there and nowhere else. The rest is shared out evenly
    over the batches, what a small batch cannot use going to the others, so that the oldest batch
    is watched as closely as the latest. What a new line supersedes or
    retracts is left out. The same arguments give the same sample.
    """
    rng = random.Random(seed)
    gone = {fact.id for fact in new}
    replaced = {fact.key for fact in new if fact.op is not Operation.ASSERT}
    pool = {
        batch: [fact for fact in facts if fact.id not in gone and fact.key not in replaced]
        for batch, facts in sorted(by_batch.items())
    }
    keys = {fact.key for fact in new}
    near = _near(pool, new, keys)
    rng.shuffle(near)
    near.sort(key=lambda pair: pair[1].key not in keys)
    chosen = near[: size // 2]
    taken = {fact.id for _, fact in chosen}
    queues = {
        batch: rng.sample(left, len(left))
        for batch, facts in pool.items()
        if (left := [fact for fact in facts if fact.id not in taken])
    }
    chosen += _evenly(queues, size - len(chosen), rng)
    rng.shuffle(chosen)
    return tuple(chosen)


def _near(
    pool: Mapping[str, Sequence[Outline]], new: Sequence[Outline], keys: set[tuple[str, ...]]
) -> list[tuple[str, Outline]]:
    subjects = {fact.subject.casefold() for fact in new if fact.subject}
    return [
        (batch, fact)
        for batch, facts in pool.items()
        for fact in facts
        if fact.key in keys or (fact.subject and fact.subject.casefold() in subjects)
    ]


def _evenly(
    queues: dict[str, list[Outline]], size: int, rng: random.Random
) -> list[tuple[str, Outline]]:
    chosen: list[tuple[str, Outline]] = []
    while queues and len(chosen) < size:
        batches = rng.sample(sorted(queues), len(queues))
        for batch in batches[: size - len(chosen)]:
            chosen.append((batch, queues[batch].pop()))
            if not queues[batch]:
                del queues[batch]
    return chosen


@lru_cache(maxsize=64)
def draw_order(items: tuple[SuiteItem, ...], seed: str) -> tuple[tuple[SuiteItem, ...], ...]:
    """The clusters of a suite in a random order that depends on `seed` and ids alone.

    One question under several ids is one cluster: asked twice, it is no further evidence.
    """
    clusters: dict[str, list[SuiteItem]] = {}
    first: dict[str, str] = {}
    for item in items:
        same = first.setdefault(" ".join(item.prompt.split()).casefold(), item.id)
        clusters.setdefault(item.cluster or same, []).append(item)
    names = sorted(clusters, key=lambda name: (content_id(seed, name), name))
    return tuple(tuple(sorted(clusters[name], key=lambda item: item.id)) for name in names)


def drawn(
    order: Sequence[tuple[SuiteItem, ...]], answered: Mapping[str, ItemResult]
) -> tuple[tuple[SuiteItem, ...], ...]:
    """The clusters drawn so far: up to the last that has an answer."""
    last = max(
        (n for n, cluster in enumerate(order, start=1) if any(i.id in answered for i in cluster)),
        default=0,
    )
    return tuple(order[:last])


def aa_sample(
    role: Role, items: tuple[SuiteItem, ...], fingerprint: str, size: int
) -> tuple[SuiteItem, ...]:
    """At most `size` items on which base is asked twice; they depend on the suite alone.

    Empty where base's answers are no baseline.
    """
    if role not in (Role.REASONING, Role.LOCALITY):
        return ()
    order = draw_order(items, f"A/A {fingerprint}")
    return tuple(item for cluster in order for item in cluster)[:size]
