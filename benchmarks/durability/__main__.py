"""Runs the parts asked for and merges their figures into benchmarks/results/durability.json."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import provenance

PARTS = ("crash", "power", "faults", "fuzz", "mutants", "soak")
RESULTS = Path(__file__).parents[1] / "results" / "durability.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Each part is a module of this package with `run() -> dict`, its figures by key."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durability", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    for part in chosen.parts:
        run: Callable[[], dict[str, Any]] = importlib.import_module(
            f"benchmarks.durability.{part}"
        ).run
        started = time.monotonic()
        figures = run()
        record = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
        record |= figures
        record.setdefault("runs", {})[part] = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "palorad": provenance.commit(),
            "seconds": round(time.monotonic() - started),
        }
        chosen.out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        print(part, json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
