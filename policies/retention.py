"""When adapters are gathered into one, what is rehearsed, how long to wait after a failure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

_SMALLEST: Final = 4
FACTS_A_RANK: Final = 4
LONGEST_PAUSE: Final = timedelta(hours=1)


def merged(new: int, earlier: Sequence[int], factor: int, most: int) -> int:
    """How many of the latest adapters are learnt anew together with `new` facts.

    `earlier` counts the facts of each adapter, the latest last. One after the other joins that has
    at most `factor` times as many as are gathered so far, and at most `most` facts in all; so every
    fact is learnt again a number of times that grows with the logarithm of the number of batches,
    and the lineage stays as short (the log-structured merge tree of O'Neil et al., 1996).
    """
    gathered, joined = new, 0
    for facts in reversed(earlier):
        if facts > factor * gathered or gathered + facts > most:
            break
        gathered, joined = gathered + facts, joined + 1
    return joined


def over_budget(lineage_rank: int, rank: int, budget: int) -> bool:
    """Whether one more adapter of `rank` would exceed the rank budget of the lineage."""
    return lineage_rank + rank > budget


def rank_for(facts: int, rank: int) -> int:
    """Rank of an adapter that learns `facts` facts: a power of two, at most `rank`.

    A fact that is learnt by itself would otherwise use as much of the budget as a whole file.
    """
    return min(rank, max(_SMALLEST, 1 << (facts - 1).bit_length()))


def consolidated_rank(facts: int, rank: int, budget: int) -> int:
    """Rank of the one adapter that takes the place of a lineage knowing `facts` facts.

    A multiple of `rank` with one for every `FACTS_A_RANK` facts, yet leaving room for one more
    adapter.
    """
    shares = max(1, -(-facts // (FACTS_A_RANK * rank)))
    room = max(rank, (budget - rank) // rank * rank)
    return min(shares * rank, room)


def learning_rank(facts: int, rank: int, budget: int) -> int:
    """Rank of an adapter that learns `facts` facts, those of earlier adapters among them."""
    if facts <= FACTS_A_RANK * rank:
        return rank_for(facts, rank)
    return consolidated_rank(facts, rank, budget)


def stride(available: int, wanted: int) -> int:
    """Every how many-th of `available` things to take for about `wanted` of them; 0 for none."""
    if wanted <= 0 or available <= 0:
        return 0
    return -(-available // wanted)


def backoff(failures: int, first_s: float) -> timedelta:
    """How long to wait after the `failures`-th failure in a row: doubled each time, bounded."""
    if failures <= 0:
        return timedelta(0)
    doubled = first_s * 2.0 ** min(failures - 1, 30)
    return min(timedelta(seconds=doubled), LONGEST_PAUSE)
