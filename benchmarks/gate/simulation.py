"""Gates in the thousands: streams of paired outcomes through the very test that palorad uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from policies.gate.sequential import (
    BettingState,
    Design,
    Floats,
    WealthPath,
    advance,
    crossings,
    fixed_size,
    follow,
    start,
)

BLOCK = 128
Draw = Callable[[int, int], Floats]
"""`draw(streams, items)` gives the next outcomes of so many streams."""


@dataclass(frozen=True, slots=True)
class Gates:
    """What many gates said; `items` is the mean number of items."""

    passed: float
    failed: float
    items: float

    @property
    def inconclusive(self) -> float:
        """Neither, when the items were used up."""
        return max(0.0, 1 - self.passed - self.failed)


def outcomes(rng: np.random.Generator, discordance: float, drop: float) -> Draw:
    """Independent items: the candidate wins (d - drop)/2 of them and loses (d + drop)/2."""
    if abs(drop) > discordance:
        raise ValueError(f"a drop of {drop} needs a discordant share of {drop} at least")

    def draw(streams: int, items: int) -> Floats:
        u = rng.random((streams, items))
        lost: Floats = (u > 1 - (discordance + drop) / 2).astype(np.float64)
        return (u < (discordance - drop) / 2) - lost

    return draw


def sequential(design: Design, draw: Draw, runs: int, largest: int) -> Gates:
    """palorad's test on `runs` streams of at most `largest` items."""
    passed, failed, items = decide(design, draw, runs, largest)
    return Gates(float(passed.mean()), float(failed.mean()), float(items.mean()))


def decide(
    design: Design, draw: Draw, runs: int, largest: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """For each stream: passed, failed, items used."""
    passed, failed = np.zeros(runs, dtype=bool), np.zeros(runs, dtype=bool)
    items = np.full(runs, largest)
    alive, state = np.arange(runs), start(runs)
    while state.items < largest and alive.size:
        before, block = state.items, min(BLOCK, largest - state.items)
        path, state = advance(design, state, draw(alive.size, block))
        won, lost = crossings(design, path)
        done = np.minimum(won, lost) < block
        passed[alive[done]] = (won <= lost)[done]
        failed[alive[done]] = (won > lost)[done]
        items[alive[done]] = before + np.minimum(won, lost)[done] + 1
        alive, state = alive[~done], _keep(state, ~done)
    return passed, failed, items


def _keep(state: BettingState, kept: NDArray[np.bool_]) -> BettingState:
    return BettingState(
        state.items, state.squares[kept], state.log_pass[kept], state.log_fail_by_bet[kept]
    )


def monotony(streams: int, seed: int) -> dict[str, int]:
    """Improve one or two answers of random streams and count the decisions that got worse.

    A stream that passes is cut off at the item that decided, where a delay would show.
    """
    rng, rank = np.random.default_rng(seed), {"fail": 0, None: 1, "pass": 2}
    cut = worse = 0
    for _ in range(streams):
        margin = rng.choice([0.01, 0.02, 0.05])
        discordance = rng.choice([0.02, 0.05, 0.1, 0.2, 0.4])
        drop = np.clip(rng.uniform(-0.5, 1.5) * margin, -discordance, discordance)
        design = Design(float(margin), 0.05, 0.05)
        stream = outcomes(rng, float(discordance), float(drop))(1, int(rng.integers(30, 1200)))[0]
        before = follow(design, stream)
        if before.decision == "pass":
            stream, cut = stream[: before.items], cut + 1
        better = stream.copy()
        at = rng.integers(0, stream.size, size=rng.integers(1, 3))
        better[at] = np.minimum(better[at] + 1, 1)
        worse += rank[follow(design, better).decision] < rank[before.decision]
    return {"streams": streams, "cut_at_a_pass": cut, "worse": int(worse)}


# --- other constructions, for comparison --------------------------------------------------------


def fixed(design: Design, discordance: float, draw: Draw, runs: int) -> Gates:
    """The paired test of fixed size, told the discordant share: passes or fails."""
    size = fixed_size(design, discordance)
    bound = NormalDist().inv_cdf(1 - design.alpha) * math.sqrt(discordance / size) - design.margin
    means = np.concatenate([draw(min(200, runs - n), size).mean(1) for n in range(0, runs, 200)])
    passed = float((means >= bound).mean())
    return Gates(passed, 1 - passed, size)


def walk(
    design: Design,
    draw: Draw,
    runs: int,
    largest: int,
    score: Callable[[Floats], WealthPath],
    bounds: tuple[float, float],
) -> Gates:
    """A test that adds up log scores of each item and stops at either bound."""
    passed = failed = 0
    used = 0.0
    for first in range(0, runs, 100):
        path = score(draw(min(100, runs - first), largest))
        won = _first(path.log_pass >= bounds[0])
        lost = _first(path.log_fail >= bounds[1])
        passed += int((won <= lost)[np.minimum(won, lost) < largest].sum())
        failed += int((won > lost).sum())
        used += float(np.minimum(np.minimum(won, lost) + 1, largest).sum())
    return Gates(passed / runs, failed / runs, used / runs)


def _first(reached: NDArray[np.bool_]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.where(
        reached.any(axis=1), reached.argmax(axis=1), reached.shape[1]
    )
    return found


def wald(design: Design, discordance: float, draw: Draw, runs: int, largest: int) -> Gates:
    """Wald's test of two simple hypotheses, told the discordant share: what cannot be beaten."""
    worse = [(discordance - design.margin) / 2, (discordance + design.margin) / 2]
    gain = math.log(discordance / 2 / worse[0]) if worse[0] > 0 else 50.0
    loss = math.log(discordance / 2 / worse[1])

    def score(x: Floats) -> WealthPath:
        ratio = np.cumsum(np.where(x > 0, gain, 0) + np.where(x < 0, loss, 0), axis=1)
        return WealthPath(ratio, -ratio)

    pass_bound = math.log((1 - design.beta) / design.alpha)
    return walk(
        design, draw, runs, largest, score, (pass_bound, math.log((1 - design.alpha) / design.beta))
    )


def mixture(design: Design, draw: Draw, runs: int, largest: int) -> Gates:
    """Equal wealth on eight fixed bets in place of one that follows the discordant share."""
    ratios = np.geomspace(1, 20, 8)
    bets = 2 / (ratios + np.sqrt(ratios**2 + 4))

    def score(x: Floats) -> WealthPath:
        def wealth(payoff: Floats) -> Floats:
            logs = [np.cumsum(np.log1p(bet * payoff), axis=1) for bet in bets]
            total: Floats = np.logaddexp.reduce(np.stack(logs), axis=0) - math.log(len(bets))
            return total

        return WealthPath(wealth(x + design.margin), wealth(-x))

    return walk(
        design, draw, runs, largest, score, (math.log(1 / design.alpha), math.log(1 / design.beta))
    )


def one_bet(design: Design, expected: float, draw: Draw, runs: int, largest: int) -> Gates:
    """One bet for ever, right for the discordant share that was expected."""
    ratio = expected / design.margin
    bet = 2 / (ratio + math.sqrt(ratio**2 + 4))

    def score(x: Floats) -> WealthPath:
        return WealthPath(
            np.cumsum(np.log1p(bet * (x + design.margin)), axis=1),
            np.cumsum(np.log1p(-bet * x), axis=1),
        )

    return walk(
        design, draw, runs, largest, score, (math.log(1 / design.alpha), math.log(1 / design.beta))
    )
