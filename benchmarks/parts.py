"""A benchmark in parts: each a module with `run() -> dict`, its figures by key, merged as one file.

What has been measured is kept when a later part fails, and any part can be run again alone.
"""

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

RESULTS = Path(__file__).parent / "results"


def main(
    package: str, about: str | None, parts: Sequence[str], arguments: Sequence[str] | None = None
) -> None:
    """Run the parts asked for of `benchmarks.<package>`; their figures go to its results file."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{package}", description=about)
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{package}.json")
    chosen = parser.parse_args(arguments)
    for part in chosen.parts:
        run: Callable[[], dict[str, Any]] = importlib.import_module(
            f"benchmarks.{package}.{part}"
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
