"""The product's probe of every matrix; a fit that the time does not suffice for goes on later."""

from __future__ import annotations

import json
import time
from typing import Any

from adapters.probe_fit import FitProgress, ProbeConfig, fit_probe
from adapters.probe_size import directions
from benchmarks.gpu.bench import Bench, resident
from benchmarks.gpu.runs import SHARE, Enough

SETTINGS = ProbeConfig(seeds=(), share=SHARE)
"""The moments alone, as the product's default protection reads them."""
AFTERWARDS = 0.1
"""The share of a phase's time that is kept for what comes after the last whole pass."""


def run(bench: Bench) -> dict[str, Any]:
    """Seconds of the whole fit, over all runs of this phase; `seconds_left` where it is not done.

    An interrupted fit keeps the moments of each finished pass over the skill's text.
    """
    out, clock = bench.folder / "probe", bench.folder / "probe-seconds.json"
    before = json.loads(clock.read_text()) if clock.exists() else 0.0
    model_dir, last = bench.written(), FitProgress("moments", 0, 1, None)
    base = bench.base()
    began = time.monotonic()

    def watch(progress: FitProgress) -> None:
        nonlocal last
        last = progress
        if bench.left < AFTERWARDS * bench.seconds:
            raise Enough

    try:
        with resident(base):
            fit_probe(model_dir, bench.material.reasoning, out, SETTINGS, watch)
    except Enough:
        pass
    seconds = before + time.monotonic() - began
    clock.write_text(json.dumps(seconds))
    inputs = bench.shape.config.hidden_size, bench.shape.config.intermediate_size
    return {
        "finished": out.exists(),
        "seconds": round(seconds, 2),
        "seconds_left": None if out.exists() else last.seconds_left,
        "matrices": 3 * bench.shape.config.num_hidden_layers,
        "directions": [directions(n, SHARE) for n in inputs],
        "disk_gb": round(sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e9, 4),
    }
