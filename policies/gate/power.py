"""How small a loss a suite can show: the power of the gate's own test, approximately."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

from policies.gate.sequential import FAIL_BETS, Design

POWER: Final = 0.8
_STEPS: Final = 40


def detectable_loss(
    design: Design, items: int, discordance: float, power: float = POWER
) -> float | None:
    """The smallest loss (a share) that fails with probability `power` within so many items.

    `discordance` is the share of items that differ between two models of which neither is worse; a
    larger loss makes more items differ. None where not even the loss of every item would show.

    The logarithm of a bet's wealth after n items is nearly normal; the mixture shows the loss when
    one of its bets has reached (number of bets)/beta. That it may have done so before the last item
    is not counted, so the true power is a little higher
    (`tests/policies/gate/test_power.py` compares it with simulations).
    """
    if not _shows(design, items, discordance, 1.0, power):
        return None
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _shows(design, items, discordance, middle, power):
            high = middle
        else:
            low = middle
    return high


def _shows(design: Design, items: int, discordance: float, loss: float, power: float) -> bool:
    needed = math.log(len(FAIL_BETS) / design.beta)
    spread = max(discordance, loss)
    worse, better = (spread + loss) / 2, (spread - loss) / 2
    z = NormalDist().inv_cdf(power)
    for bet in FAIL_BETS:
        gain, cost = math.log1p(bet), math.log1p(-bet)
        mean = worse * gain + better * cost
        variance = max(0.0, worse * gain**2 + better * cost**2 - mean**2)
        if items * mean - z * math.sqrt(items * variance) >= needed:
            return True
    return False
