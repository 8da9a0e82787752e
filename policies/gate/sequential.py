"""A paired non-inferiority test that may stop after any item, by betting.

Each item gives x in [-1, 1]: -1 newly failing, 0 unchanged, +1 newly passing, or the mean of these
over a cluster of items. Two hypotheses are bet against at once:

* "worse by at least the margin", mean(x) <= -margin: the wealth prod(1 + l_i (x_i + margin)) is a
  supermartingale for every predictable 0 <= l_i < 1. It passes at 1/alpha.
* "no drop", mean(x) >= 0: the wealth mean_k prod(1 - l_k x_i) over fixed bets l_k is one, too. It
  fails at 1/beta.

By Ville's inequality a wealth that starts at 1 ever reaches 1/alpha with probability alpha at most,
whatever the share of discordant items is and whenever one stops (Ville 1939; Waudby-Smith and
Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024; the two-sided
boundary is Wald's, "Sequential analysis", 1947).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Decision = Literal["pass", "fail"]

# The prior of the discordant share, in margins, and how many discordant items it counts for. It
# costs or saves items and never validity; docs/gate.md shows what other choices cost.
PRIOR_DISCORDANCE: Final = 1.25
PRIOR_ITEMS: Final = 4.0
# Bets against "no drop": right for drops of 5 %, 20 % and 80 % of the discordant share. Half the
# right bet still grows at 75 % of the best rate, twice the right bet not at all.
FAIL_BETS: Final[Floats] = np.array([0.05, 0.2, 0.8])


@dataclass(frozen=True, slots=True)
class Design:
    """What is tested: the margin (a share: 0.02 is 2 pp) and the two errors.

    `alpha` bounds the probability of passing what is worse by the margin, `beta` that of failing
    what lost nothing.
    """

    margin: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        for name, value in (("margin", self.margin), ("alpha", self.alpha), ("beta", self.beta)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {value}")


@dataclass(frozen=True, slots=True)
class BettingState:
    """Where streams stand after `items` items: arrays of shape (streams,) and (streams, bets)."""

    items: int
    squares: Floats
    log_pass: Floats
    log_fail_by_bet: Floats


@dataclass(frozen=True, slots=True)
class WealthPath:
    """The logarithms of both wealths after each item of a block; shape (streams, items)."""

    log_pass: Floats
    log_fail: Floats


@dataclass(frozen=True, slots=True)
class SequentialResult:
    """One stream so far; `items` is where it was decided, or all of them.

    `discordance` and `mean` are what was seen; `expected_discordance` is what the bets went by.
    """

    decision: Decision | None
    items: int
    log_pass: float
    log_fail: float
    discordance: float
    expected_discordance: float
    mean: float


def start(streams: int) -> BettingState:
    """The state before the first item: every wealth is 1."""
    return BettingState(
        0, np.zeros(streams), np.zeros(streams), np.zeros((streams, len(FAIL_BETS)))
    )


def kelly_bet(discordance: Floats | float, margin: float) -> Floats:
    """The bet against "worse by the margin" that grows fastest when nothing was lost.

    With gains and losses equally likely the growth per item is (d/2) ln(1 - l^2) + l*margin up to
    terms in margin^2; its maximum solves l^2 + (d/margin) l - 1 = 0. Always below 1, so that no
    single loss takes the whole wealth.
    """
    ratio = np.asarray(discordance, dtype=np.float64) / margin
    bet: Floats = 2.0 / (ratio + np.sqrt(ratio * ratio + 4.0))
    return bet


def advance(
    design: Design, state: BettingState, outcomes: Floats
) -> tuple[WealthPath, BettingState]:
    """Bet on a block of outcomes of shape (streams, items), each on what came before it."""
    block = outcomes.shape[1]
    squares = np.cumsum(outcomes * outcomes, axis=1)
    before = state.squares[:, None] + squares - outcomes * outcomes
    bets = kelly_bet(_discordance(design, before, state.items + np.arange(block)), design.margin)
    log_pass = np.cumsum(np.log1p(bets * (outcomes + design.margin)), axis=1)
    log_pass += state.log_pass[:, None]
    log_fail, by_bet = _mixture(-outcomes, FAIL_BETS, state.log_fail_by_bet)
    return WealthPath(log_pass, log_fail), BettingState(
        state.items + block, state.squares + squares[:, -1], log_pass[:, -1].copy(), by_bet
    )


def _mixture(payoffs: Floats, bets: Floats, by_bet: Floats) -> tuple[Floats, Floats]:
    """The log of the mean wealth of fixed bets after each item, and each bet's at the end."""
    mean = np.full(payoffs.shape, -np.inf)
    last = np.empty_like(by_bet)
    for k, bet in enumerate(bets):
        wealth = np.cumsum(np.log1p(bet * payoffs), axis=1) + by_bet[:, k, None]
        last[:, k] = wealth[:, -1]
        np.logaddexp(mean, wealth, out=mean)
    return mean - math.log(len(bets)), last


def loses_more(outcomes: Sequence[float] | Floats, *, allowed: float, beta: float) -> bool:
    """Whether outcomes of shape (items,) show that more than the share `allowed` is lost.

    A test of losses alone, with error `beta`, valid after any number of items like `follow`; it
    says nothing when it says no.
    """
    stream = np.asarray(outcomes, dtype=np.float64)
    if stream.size == 0:
        return False
    payoffs = np.maximum(-stream, 0.0)[None, :] - allowed
    log_wealth, _ = _mixture(payoffs, FAIL_BETS / allowed, np.zeros((1, len(FAIL_BETS))))
    return bool(log_wealth.max() >= math.log(1 / beta))


def _discordance(design: Design, squares: Floats | float, items: NDArray[np.int64] | int) -> Floats:
    """The shrunk estimate of the discordant share from the items before."""
    prior = PRIOR_DISCORDANCE * design.margin
    return np.asarray((PRIOR_ITEMS + squares) / (PRIOR_ITEMS / prior + items), dtype=np.float64)


def crossings(design: Design, path: WealthPath) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each stream the index of its first pass and first fail in the block; its length if none.

    Both within one item is impossible unless the errors add to more than 1; pass is then read
    first by the caller.
    """
    return (
        _first(path.log_pass >= math.log(1 / design.alpha)),
        _first(path.log_fail >= math.log(1 / design.beta)),
    )


def _first(reached: NDArray[np.bool_]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.where(
        reached.any(axis=1), reached.argmax(axis=1), reached.shape[1]
    )
    return found


def follow(design: Design, outcomes: Sequence[float] | Floats) -> SequentialResult:
    """One stream of outcomes, shape (items,), read in its order until it is decided."""
    stream = np.asarray(outcomes, dtype=np.float64)
    if stream.size == 0:
        prior = PRIOR_DISCORDANCE * design.margin
        return SequentialResult(None, 0, 0.0, 0.0, 0.0, prior, 0.0)
    path, _ = advance(design, start(1), stream[None, :])
    passed, failed = (int(c[0]) for c in crossings(design, path))
    last = min(passed, failed, stream.size - 1)
    decision: Decision | None = None
    if min(passed, failed) < stream.size:
        decision = "pass" if passed <= failed else "fail"
    used = stream[: last + 1]
    squares = float(used @ used)
    return SequentialResult(
        decision=decision,
        items=last + 1,
        log_pass=float(path.log_pass[0, last]),
        log_fail=float(path.log_fail[0, last]),
        discordance=squares / used.size,
        expected_discordance=float(_discordance(design, squares, used.size)),
        mean=float(np.mean(used)),
    )


def items_to_pass(design: Design, discordance: float, log_wealth: float = 0.0) -> int:
    """How many items a candidate that lost nothing is expected to need yet before it passes.

    `log_wealth` is what has been won so far. Expected growth of the best bet, exact for outcomes
    in {-1, 0, 1}; a discordant share of 0 gives the least any candidate can need.
    """
    bet = float(kelly_bet(discordance, design.margin))
    gain, loss = bet * (design.margin + 1), bet * (design.margin - 1)
    swing = math.log1p(gain) + math.log1p(loss) if discordance > 0 else 0.0
    growth = discordance / 2 * swing + (1 - discordance) * math.log1p(bet * design.margin)
    return max(0, math.ceil((math.log(1 / design.alpha) - log_wealth) / growth))


def fixed_size(design: Design, discordance: float) -> int:
    """Items of the paired test of fixed size with the same errors: (z_a + z_b)^2 d / margin^2."""
    quantile = NormalDist().inv_cdf
    z = quantile(1 - design.alpha) + quantile(1 - design.beta)
    return math.ceil(z * z * discordance / design.margin**2)
