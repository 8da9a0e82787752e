"""Successive gates on one draw of the items: what sharing it lets through, item by item."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.gate.sequential import Design, Floats, advance, crossings, start

ITEMS = 1319
BATCHES = 40
LOSS = 0.005
# Items whose answer every revision draws anew; two revisions then differ on half of them.
DOUBTFUL = 0.1
SAME_DRAW = (1, 10, BATCHES)

Bools = NDArray[np.bool_]


def shared_draws(design: Design, runs: int, seed: int) -> list[dict[str, Any]]:
    """Forty batches that would each cost 0.5 pp, for several lengths of a draw.

    `accumulated_loss` after each batch; `passed_too_much`: the share that passed of the candidates
    that are worse than the reference by the margin or more.
    """
    rows = []
    for same in SAME_DRAW:
        live = np.zeros(runs, dtype=np.int64)
        losses, judged, passed = [], 0, 0
        rng = np.random.default_rng([seed, same])
        draw = SharedDraw(rng, live)
        for batch in range(BATCHES):
            if batch % same == 0:
                draw = SharedDraw(rng, live)
            accepted = draw.judge(design)
            live = live + accepted
            too_much = live + ~accepted >= round(design.margin / LOSS)
            judged += int(too_much.sum())
            passed += int((accepted & too_much).sum())
            losses.append(float(live.mean() * LOSS))
        rows.append(
            {
                "revisions_per_draw": same,
                "accumulated_loss": losses,
                "judged": judged,
                "passed_too_much": passed / max(1, judged),
                "runs": runs,
            }
        )
    return rows


class SharedDraw:
    """One sample of items for each run: what the reference and the live revision answer to them.

    An item in doubt is right by a coin at every revision. Every other one is right with the
    reference; each revision breaks a share of those for good, on this sample with its own luck.
    """

    def __init__(self, rng: np.random.Generator, live: NDArray[np.int64]) -> None:
        """`live`: how many batches went live before, of each run."""
        self._rng = rng
        shape = (live.size, ITEMS)
        self._doubtful: Bools = rng.random(shape) < DOUBTFUL
        self._broken: Bools = ~self._doubtful & (rng.random(shape) < _broken(live)[:, None])
        self._reference = self._answers(np.zeros(shape, dtype=bool))
        self._live = np.where((live == 0)[:, None], self._reference, self._answers(self._broken))

    def judge(self, design: Design) -> Bools:
        """Which runs' next candidate goes live: not worse than the reference nor than the live."""
        worse = LOSS / (1 - DOUBTFUL)
        broken = self._broken | (~self._doubtful & (self._rng.random(self._broken.shape) < worse))
        candidate = self._answers(broken)
        accepted = _passes(design, candidate, self._reference)
        accepted &= _passes(design, candidate, self._live)
        self._broken = np.where(accepted[:, None], broken, self._broken)
        self._live = np.where(accepted[:, None], candidate, self._live)
        return accepted

    def _answers(self, broken: Bools) -> Bools:
        coin = self._rng.random(broken.shape) < 0.5
        return np.where(self._doubtful, coin, ~broken)


def _broken(live: NDArray[np.int64]) -> Floats:
    """The share of the items not in doubt that so many batches have broken."""
    return np.asarray(1 - (1 - LOSS / (1 - DOUBTFUL)) ** live, dtype=np.float64)


def _passes(design: Design, candidate: Bools, baseline: Bools) -> Bools:
    outcomes = candidate.astype(np.float64) - baseline.astype(np.float64)
    path, _ = advance(design, start(len(outcomes)), outcomes)
    won, lost = crossings(design, path)
    return np.asarray((won < ITEMS) & (won <= lost), dtype=bool)
