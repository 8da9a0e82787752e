"""palorad on one GPU at real size: `python -m benchmarks.gpu`.

Needs no weights: models of real shapes are made with random ones. Nor any network, except that TRL
is installed from the package index for the rivals. Each phase takes four minutes at most, can be
run alone, and its figures are kept at once.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from adapters import models
from benchmarks import parts, provenance
from benchmarks.gpu import shapes
from benchmarks.gpu.bench import Bench
from demo.report import machine_in_use, versions_in_use

PHASES: Final = {
    "correctness": "benchmarks.gpu.correctness",
    "step": "benchmarks.gpu.step",
    "levers": "benchmarks.gpu.levers",
    "memory": "benchmarks.gpu.memory",
    "store": "benchmarks.gpu.storing",
    "probe": "benchmarks.gpu.probe",
    "rivals": "benchmarks.gpu.rivals",
    "batch": "benchmarks.gpu.batch",
    "many": "benchmarks.gpu.many",
}
OF_A_SECOND_SHAPE: Final = ("step", "memory")
"""What is measured of every shape after the first."""
SECONDS: Final = 240.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the phases asked for; 1 where one failed, after all others have been run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument(
        "--shape",
        choices=["auto", *shapes.shapes()],
        default="auto",
        help="auto: as large as the free memory allows",
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each phase")
    parser.add_argument("--rivals", nargs="+", choices=["peft", "trl"], default=["peft", "trl"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/gpu"), help="for working files")
    parser.add_argument("--out", type=Path, default=None)
    chosen = parser.parse_args(arguments)
    device = models.pick_device()
    names = [chosen.shape]
    if chosen.shape == "auto":
        names = shapes.fitting(_free_gb(device))
        if not names:
            parser.error("no GPU with 10 GB free: only --shape tiny can be measured here")
    # A tiny model says nothing about a GPU: its figures stay out of the committed ones.
    usual = chosen.folder / "tiny.json" if names == ["tiny"] else parts.RESULTS / "gpu.json"
    out = chosen.out or usual
    failed = 0
    for place, name in enumerate(names):
        wanted = [p for p in PHASES if p in chosen.phases]
        if place:
            wanted = [p for p in wanted if p in OF_A_SECOND_SHAPE]
        bench = Bench(shapes.shapes()[name], device, chosen.folder / name, chosen.seed)
        bench.rivals = tuple(chosen.rivals)
        bench.folder.mkdir(parents=True, exist_ok=True)
        failed += sum(not _measured(phase, bench, out, chosen.seconds, name) for phase in wanted)
        bench.release()
    return 1 if failed else 0


def _measured(phase: str, bench: Bench, out: Path, seconds: float, shape: str) -> bool:
    """Run one phase and keep what it says; False where it failed, which is kept as well."""
    run: Callable[[Bench], dict[str, Any]] = importlib.import_module(PHASES[phase]).run
    bench.seconds, bench.began = seconds, time.monotonic()
    try:
        figures = run(bench)
    except Exception as error:  # the phases after it are worth their own figures
        figures = {"failed": f"{type(error).__name__}: {error}"}
        bench.release()
    keep(out, shape, phase, figures | provenance_of(bench, time.monotonic() - bench.began))
    print(shape, phase, json.dumps(figures), flush=True)
    return "failed" not in figures


def keep(out: Path, shape: str, phase: str, figures: dict[str, Any]) -> None:
    """Put a phase's figures into the results beside those that are there."""
    record = json.loads(out.read_text()) if out.exists() else {}
    record.setdefault(shape, {})[phase] = figures
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def provenance_of(bench: Bench, seconds: float) -> dict[str, Any]:
    """What the figures were measured on and with."""
    gpu = torch.cuda.get_device_name() if bench.device.type == "cuda" else None
    return {
        "run": {
            "model": bench.shape.name,
            "gpu": gpu,
            "machine": machine_in_use(),
            "versions": versions_in_use(),
            "seed": bench.seed,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "palorad": provenance.commit(),
            "phase_seconds": round(seconds, 1),
        }
    }


def _free_gb(device: torch.device) -> float:
    return torch.cuda.mem_get_info()[0] / 1e9 if device.type == "cuda" else 0.0


if __name__ == "__main__":
    sys.exit(main())
