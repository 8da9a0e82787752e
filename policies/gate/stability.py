"""Base asked twice: how often decoding changes an answer, and what that does to a measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Final

from pydantic import Field

from policies.gate.records import Flips, ItemResult
from policies.records import Record

# Two runs of the same weights that differ in one direction with this probability by chance are no
# chance: something other than the weights has changed between them.
LOPSIDED: Final = 0.001


class Stability(Record):
    """Base against itself (A/A) on items chosen beforehand: `worse` and `better` the second time,
    of `items` asked twice; `changed` answers differ in some character.
    """

    items: int = Field(ge=1)
    worse: int = Field(ge=0)
    better: int = Field(ge=0)
    changed: int = Field(default=0, ge=0)

    @property
    def flips(self) -> float:
        """Share of items whose answer changed between being right and being wrong."""
        return (self.worse + self.better) / self.items

    @property
    def told(self) -> Flips:
        """As a verdict tells it."""
        return Flips(items=self.items, flipped=self.worse + self.better, changed=self.changed)

    @property
    def lopsided(self) -> bool:
        """Whether the two runs differ by more than chance: an exact two-sided sign test."""
        changed = self.worse + self.better
        tail = sum(math.comb(changed, k) for k in range(min(self.worse, self.better) + 1))
        return bool(2 * tail < LOPSIDED * 2**changed)

    def luck(self, items: int, error: float) -> float:
        """How far one measurement of `items` items may lie from the weights' own score.

        Exceeded with probability `error`; each answer's variance is half its chance to flip.
        """
        return NormalDist().inv_cdf(1 - error) * math.sqrt(self.flips / 2 / items)


def stability(
    first: Mapping[str, ItemResult], second: Mapping[str, ItemResult]
) -> Stability | None:
    """The A/A comparison of two runs by item; None where no item has both answers."""
    common = first.keys() & second.keys()
    both = [(first[name].correct, second[name].correct) for name in common]
    if not both:
        return None
    return Stability(
        items=len(both),
        worse=sum(one and not other for one, other in both),
        better=sum(other and not one for one, other in both),
        changed=sum(first[name].output != second[name].output for name in common),
    )
