"""Decoding that does not repeat itself: one frozen measurement, many gates against it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gate.simulation import Draw, outcomes, sequential
from policies.gate.sequential import Design, Floats
from policies.gate.stability import Stability

ITEMS = 1319
DISCORDANCE = 0.05


def instability(design: Design, *, references: int, gates: int, seed: int) -> list[dict[str, Any]]:
    """False accepts of candidates worse by exactly the margin, with and without the correction.

    `unlucky` is the share of the frozen measurements under which more than 2 alpha of them pass.
    """
    rows = []
    for flips in (0.0, 0.005, 0.02):
        luck = Stability(items=1000, worse=round(500 * flips), better=round(500 * flips)).luck(
            ITEMS, design.alpha
        )
        for corrected in (False, True):
            tested = replace(design, margin=design.margin - luck) if corrected else design
            rng = np.random.default_rng([seed, round(1e4 * flips)])
            rates = np.array(
                [
                    sequential(
                        tested, candidates(rng, freeze(rng, flips), design), gates, ITEMS
                    ).passed
                    for _ in range(references)
                ]
            )
            rows.append(
                {
                    "flips": flips,
                    "corrected": corrected,
                    "tested_margin": tested.margin,
                    "false_accept": float(rates.mean()),
                    "unlucky": float((rates > 2 * design.alpha).mean()),
                    "references": references,
                    "gates": gates,
                }
            )
    return rows


def freeze(rng: np.random.Generator, flips: float) -> NDArray[np.int8]:
    """One measurement of the reference: 0 or 1 where a coin decides, -1 where it is sure.

    Items decided by a coin change in half of all pairs of runs, so there are 2·flips of them.
    """
    coin = rng.random(ITEMS) < 2 * flips
    return np.where(coin, rng.integers(0, 2, ITEMS), -1).astype(np.int8)


def candidates(rng: np.random.Generator, frozen: NDArray[np.int8], design: Design) -> Draw:
    """Candidates worse by the margin on every kind of item, asked in random order."""
    sure = outcomes(rng, DISCORDANCE, design.margin)

    def draw(streams: int, items: int) -> Floats:
        reference = frozen[rng.integers(0, ITEMS, size=(streams, items))]
        right = rng.random(reference.shape) < 0.5 - design.margin
        return np.where(reference < 0, sure(streams, items), right - reference.astype(np.float64))

    return draw
