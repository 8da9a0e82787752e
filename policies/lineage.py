"""What learns the next batch, and what is replayed."""

from __future__ import annotations

from typing import Final, Literal

Lineage = Literal["warm-start", "stack"]

_SMALLEST: Final = 4
FACTS_A_RANK: Final = 4


def over_budget(lineage_rank: int, rank: int, budget: int) -> bool:
    """Whether one more adapter of `rank` would exceed the rank budget of the lineage."""
    return lineage_rank + rank > budget


def outgrown(began_with: int, gone_on: int, retrain_at: int) -> bool:
    """Whether an adapter that was begun with some facts and has gone on with others is to be begun
    anew: it knows `retrain_at` at least, and twice what it began with; never where `retrain_at` is
    0.

    So it happens at doublings alone: learning all anew takes the longer, the more there are.
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


def stride(available: int, wanted: int) -> int:
    """Every how many-th of `available` things to take for about `wanted` of them; 0 for none."""
    if wanted <= 0 or available <= 0:
        return 0
    return -(-available // wanted)
