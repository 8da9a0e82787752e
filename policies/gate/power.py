"""How small a loss a suite can show: the power of the gate's own test, approximately."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

from policies.gate.sequential import FAIL_BETS, Design, kelly_bet

POWER: Final = 0.8
_STEPS: Final = 40


def detectable_loss(
    design: Design, items: int, discordance: float, power: float = POWER
) -> float | None:
    """The smallest loss (a share) that fails with probability `power` within so many items.

    `discordance` is the share of items that differ between two models of which neither is worse; a
    larger loss makes more items differ. None where not even the loss of every item would show.

    A loss fails where the wealth of the bet against "no drop" reaches its bound and that of the bet
    against "worse by the margin" has not, so its probability is at least that of the former less
    that of the latter (`tests/policies/gate/test_power.py` compares it with simulations).
    """
    if _fails(design, items, discordance, 1.0) < power:
        return None
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _fails(design, items, discordance, middle) >= power:
            high = middle
        else:
            low = middle
    return high


def _fails(design: Design, items: int, discordance: float, loss: float) -> float:
    spread = max(discordance, loss)
    worse, better = (spread + loss) / 2, (spread - loss) / 2
    return _shown(design, items, worse, better) - _passes(design, worse, better)


def _shown(design: Design, items: int, worse: float, better: float) -> float:
    """How probably a bet against "no drop" has won enough by the last item.

    The logarithm of its wealth is nearly normal then; the mixture reaches 1/beta when one of its
    bets has reached (number of bets)/beta.
    """
    needed = math.log(len(FAIL_BETS) / design.beta)
    best = -math.inf
    for bet in FAIL_BETS:
        gain, cost = math.log1p(bet), math.log1p(-bet)
        mean = worse * gain + better * cost
        variance = max(1e-12, worse * gain**2 + better * cost**2 - mean**2)
        best = max(best, (items * mean - needed) / math.sqrt(items * variance))
    return NormalDist().cdf(best)


def _passes(design: Design, worse: float, better: float) -> float:
    """At most how probably a candidate with this loss ever passes.

    W**t is a martingale for the t > 0 with E[(1 + l (x + margin))**t] = 1, so that W reaches
    1/alpha with probability alpha**t at most (Ville 1939). There is none where W grows.
    """
    bet = float(kelly_bet(worse + better, design.margin))
    steps = (
        (worse, math.log1p(bet * (design.margin - 1))),
        (better, math.log1p(bet * (design.margin + 1))),
        (1 - worse - better, math.log1p(bet * design.margin)),
    )
    if sum(chance * step for chance, step in steps) >= 0:
        return 1.0
    low, high = 0.0, 1.0
    while sum(chance * math.exp(high * step) for chance, step in steps) < 1 and high < 64:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if sum(chance * math.exp(middle * step) for chance, step in steps) < 1:
            low = middle
        else:
            high = middle
    return float(design.alpha**low)
