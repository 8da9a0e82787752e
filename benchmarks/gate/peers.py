"""What others gate with, one gate and forty batches long."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.gate.simulation import decide, outcomes
from policies.gate.sequential import Design

Accepts = Callable[[np.random.Generator, float, float, int], NDArray[np.bool_]]
"""`accepts(rng, discordance, drop, runs)`: which of `runs` candidates go live."""

# Everyone gets the same suite: as large as GSM8K's test set, or a small one.
ITEMS, FEW_ITEMS = 1319, 300
BATCHES = 40
LOSS = 0.005
ACCURACY = 0.7
# Discordance against the predecessor, and what each further batch adds to it against the base.
NEAR, FARTHER = 0.05, 0.002


def unpaired_z(items: int, design: Design) -> Accepts:
    """Two accuracies with their standard errors; rejected when significantly worse."""
    z = NormalDist().inv_cdf(1 - design.alpha)

    def accepts(
        rng: np.random.Generator, discordance: float, drop: float, runs: int
    ) -> NDArray[np.bool_]:
        reference = rng.binomial(items, ACCURACY, runs) / items
        candidate = rng.binomial(items, ACCURACY - drop, runs) / items
        variance = reference * (1 - reference) + candidate * (1 - candidate)
        accepted: NDArray[np.bool_] = candidate - reference >= -z * np.sqrt(variance / items)
        return accepted

    return accepts


def mcnemar(items: int, design: Design) -> Accepts:
    """The paired test for "any difference" on a fixed number of items; rejected when worse."""
    z = NormalDist().inv_cdf(1 - design.alpha)

    def accepts(
        rng: np.random.Generator, discordance: float, drop: float, runs: int
    ) -> NDArray[np.bool_]:
        lost, won = _counts(rng, items, discordance, drop, runs)
        accepted: NDArray[np.bool_] = (lost - won) <= z * np.sqrt(np.maximum(lost + won, 1))
        return accepted

    return accepts


def non_inferiority(items: int, design: Design) -> Accepts:
    """palorad's test on a suite of `items` items; what is inconclusive does not go live."""

    def accepts(
        rng: np.random.Generator, discordance: float, drop: float, runs: int
    ) -> NDArray[np.bool_]:
        passed, _, _ = decide(design, outcomes(rng, discordance, drop), runs, items)
        return passed

    return accepts


def _counts(
    rng: np.random.Generator, items: int, discordance: float, drop: float, runs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    shares = [(discordance + drop) / 2, (discordance - drop) / 2, 1 - discordance]
    drawn = rng.multinomial(items, shares, size=runs)
    return drawn[:, 0], drawn[:, 1]


def leak(accepts: Accepts, *, frozen: bool, runs: int, seed: int) -> list[float]:
    """Mean loss against the base after each of forty batches that would each cost 0.5 pp.

    `frozen` compares with the base, else with the revision before. A candidate that is not
    accepted costs nothing and the next one builds on what was live.
    """
    rng = np.random.default_rng(seed)
    live = np.zeros(runs, dtype=np.int64)
    means = []
    for _ in range(BATCHES):
        accepted = np.zeros(runs, dtype=bool)
        for count in np.unique(live):
            which = live == count
            steps = int(count) + 1 if frozen else 1
            drop = LOSS * steps
            discordance = max(NEAR + FARTHER * (steps - 1), drop)
            accepted[which] = accepts(rng, discordance, drop, int(which.sum()))
        live += accepted
        means.append(float(live.mean() * LOSS))
    return means


def one_gate(accepts: Accepts, drops: tuple[float, ...], runs: int, seed: int) -> list[float]:
    """Share of candidates accepted at each true drop, at a discordant share of 5 %."""
    rng = np.random.default_rng(seed)
    return [float(accepts(rng, max(NEAR, drop), drop, runs).mean()) for drop in drops]
