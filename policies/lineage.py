"""How adapters are composed: their ranks, and when one is retrained from scratch."""

from __future__ import annotations

from typing import Final, Literal

Lineage = Literal["warm-start", "stack"]

_SMALLEST: Final = 4
FACTS_A_RANK: Final = 4


def over_budget(lineage_rank: int, rank: int, budget: int) -> bool:
    """Whether one more adapter of `rank` would exceed the rank budget of the lineage."""
    return lineage_rank + rank > budget


def outgrown(scratch_facts: int, added_facts: int, retrain_at: int) -> bool:
    """Whether an adapter is to be retrained from scratch.

    It is once it knows at least `retrain_at` facts and twice those that it was last trained from
    scratch on; never where `retrain_at` is 0. So it happens at doublings alone: retraining takes
    longer the more facts there are.
    """
    return 0 < retrain_at <= scratch_facts + added_facts and added_facts >= max(1, scratch_facts)


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
