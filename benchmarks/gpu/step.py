"""A step of the product with and without the protection's projection, in turns."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.runs import Timing, Watched, figures, timed, usual

ROUNDS = 2


def run(bench: Bench) -> dict[str, Any]:
    """Seconds, tokens a second and MFU; `projection_ratio` is with it over without it."""
    config = usual(bench)
    found: dict[float, list[Timing]] = {0.2: [], 0.0: []}
    for turn in range(ROUNDS):
        for share, timings in found.items():
            within = bench.left / (2 * ROUNDS - 2 * turn) / 3
            timings.append(timed(bench, config, Watched(share=share), within=within))
    with_it, without = (
        Timing([s for t in timings for s in t.seconds], [s for t in timings for s in t.steps])
        for timings in found.values()
    )
    return {
        **figures(bench, with_it),
        "without_projection": figures(bench, without),
        "projection_ratio": round(median(with_it.seconds) / median(without.seconds), 4),
    }
