"""The product's step beside the same texts in a PEFT loop and in TRL's trainer, on this device."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median
from typing import Any

from adapters.models import base_hash
from adapters.probe import Protection
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.runs import TIMED, usual
from benchmarks.scale import rivals

WARM = 2
REPEATS = 5


def run(bench: Bench) -> dict[str, Any]:
    """Medians of seconds, and of ours over theirs, step by step on the same texts.

    The product's step is protected by the probe where that has been fitted, PEFT's is not.
    """
    config = usual(bench).model_copy(update={**TIMED, "steps": WARM + REPEATS})
    plan = bench.plan(config).model_copy(
        update={
            "model_dir": bench.written(),
            "base_hash": base_hash(bench.model_dir),
            "probe_dir": bench.probe,
            "protection": Protection(kind="none" if bench.probe is None else "activations"),
        }
    )
    # Each side loads the base for itself.
    bench.release()
    with ExitStack() as open_:
        others: dict[str, rivals.Rival] = {}
        if "peft" in bench.rivals:
            others["peft"] = rivals.peft(plan)
        if "trl" in bench.rivals:
            others["trl"] = open_.enter_context(rivals.trl(plan))
        rows = rivals.alternate(plan, others)[WARM:]
    found: dict[str, Any] = {
        f"{name}_ratio": round(median(row["ours"] / row[name] for row in rows), 3)
        for name in others
    }
    seconds = {name: round(median(row[name] for row in rows), 4) for name in ("ours", *others)}
    sizes = {
        name: round(median(row[name] for row in rows)) for name in ("texts", "tokens", "learnt")
    }
    return {
        **found,
        "seconds": seconds,
        **sizes,
        "repeats": len(rows),
        "protection": plan.protection.kind,
        "trl": rivals.TRL if "trl" in others else None,
    }
