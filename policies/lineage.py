"""Ranks and retraining of a lineage of adapters, even samples for replay, back-off."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Literal

Lineage = Literal["warm-start", "stack"]

_SMALLEST: Final = 4
FACTS_A_RANK: Final = 4
LONGEST_PAUSE: Final = timedelta(hours=1)


def over_budget(lineage_rank: int, rank: int, budget: int) -> bool:
    """Whether one more adapter of `rank` would exceed the rank budget of the lineage."""
    return lineage_rank + rank > budget


def outgrown(began_with: int, gone_on: int, retrain_at: int) -> bool:
    """Whether an adapter is to be retrained from scratch: it was trained from scratch on
    `began_with` facts and has learnt `gone_on` others by warm starts since, knows at least
    `retrain_at` facts and twice those it began with. Never where `retrain_at` is 0.

    So it happens only at doublings: retraining takes longer, the more facts there are.
    """
    return 0 < retrain_at <= began_with + gone_on and gone_on >= max(1, began_with)


def rank_for(facts: int, rank: int) -> int:
    """Rank of an adapter that learns `facts` facts: a power of two, at most `rank`.

    A fact that is learnt by itself would otherwise use as much of the budget as a whole file.
    """
    return min(rank, max(_SMALLEST, 1 << (facts - 1).bit_length()))


def learning_rank(facts: int, rank: int, most: int) -> int:
    """Rank of an adapter that is to know `facts` facts: at most `most`, or `rank` if that is more.

    Of many facts a multiple of `rank` with one for every `FACTS_A_RANK` facts.
    """
    if facts <= FACTS_A_RANK * rank:
        return rank_for(facts, rank)
    shares = -(-facts // (FACTS_A_RANK * rank))
    return rank * max(1, min(shares, most // rank))


def stride(available: int, target: int) -> int:
    """The step n at which every n-th of `available` things gives about `target`; 0 for none."""
    if target <= 0 or available <= 0:
        return 0
    return -(-available // target)


def backoff(failures: int, first_s: float) -> timedelta:
    """How long to wait after the `failures`-th failure in a row: doubled each time, bounded."""
    if failures <= 0:
        return timedelta(0)
    doubled = first_s * 2.0 ** min(failures - 1, 30)
    return min(timedelta(seconds=doubled), LONGEST_PAUSE)
