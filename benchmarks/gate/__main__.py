"""Measure the gate by simulation; `python -m benchmarks.gate` writes its figures and plots."""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gate import peers
from benchmarks.gate.draws import shared_draws
from benchmarks.gate.instability import instability
from benchmarks.gate.plots import draw_all
from benchmarks.gate.simulation import (
    Gates,
    decide,
    fixed,
    mixture,
    monotony,
    one_bet,
    outcomes,
    sequential,
    wald,
)
from benchmarks.gate.tables import fill
from benchmarks.provenance import commit
from policies.gate.limits import PRESETS, GateLimits
from policies.gate.sequential import Design, fixed_size, items_to_pass

ROOT = Path(__file__).parents[2]
DISCORDANCE = (0.02, 0.05, 0.1, 0.2)
MARGINS = (0.01, 0.02, 0.03)
DROPS = (0.0, 0.005, 0.01, 0.02, 0.03)
# A suite this many times as large as the fixed-size test asks for: then it is inconclusive.
LARGEST = 2.5
SEED = 20260101

Json = dict[str, Any]


def calibration(design: Design, runs: int) -> list[Json]:
    """One cell for every discordance, margin and drop that can exist (no drop exceeds the
    discordance, and no margin that could be lost does).
    """
    cells = []
    for discordance in DISCORDANCE:
        for margin in (m for m in MARGINS if m <= discordance):
            for drop in (d for d in DROPS if d <= discordance):
                cells.append(cell(replace(design, margin=margin), discordance, drop, runs))
                print(cells[-1], flush=True)
    return cells


def cell(design: Design, discordance: float, drop: float, runs: int) -> Json:
    """One cell; a pass is false from the margin on, a fail only where nothing was lost."""
    rng = np.random.default_rng(
        [SEED, *(round(1e4 * v) for v in (discordance, design.margin, drop))]
    )
    size = fixed_size(design, discordance)
    draw = outcomes(rng, discordance, drop)
    gates = sequential(design, draw, runs, math.ceil(LARGEST * size))
    return {
        "discordance": discordance,
        "drop": drop,
        "margin": design.margin,
        "false_accept": gates.passed if drop >= design.margin else 0.0,
        "false_reject": gates.failed if drop == 0 else 0.0,
        "items_ratio": round(gates.items / size, 4),
        "runs": runs,
        "passed": gates.passed,
        "failed": gates.failed,
        "inconclusive": round(gates.inconclusive, 6),
        "items": round(gates.items, 1),
        "fixed_size": size,
    }


def constructions(design: Design, runs: int) -> list[Json]:
    """Ways to build the test, each at no drop and at a drop equal to the margin."""
    rows = []
    for discordance in DISCORDANCE:
        size = fixed_size(design, discordance)
        largest = math.ceil(LARGEST * size)
        for drop in (0.0, design.margin):
            rng = np.random.default_rng([SEED, 1, round(1e4 * discordance), round(1e4 * drop)])
            draw = outcomes(rng, discordance, drop)
            built: dict[str, Gates] = {
                "fixed size, discordance known": fixed(design, discordance, draw, runs),
                "Wald, discordance known": wald(design, discordance, draw, runs, largest),
                "one bet for 10 %": one_bet(design, 0.1, draw, runs, largest),
                "eight bets": mixture(design, draw, runs, largest),
                "palorad": sequential(design, draw, runs, largest),
            }
            rows += [
                {
                    "construction": name,
                    "discordance": discordance,
                    "drop": drop,
                    "passed": gates.passed,
                    "failed": gates.failed,
                    "items_ratio": round(gates.items / size, 4),
                    "runs": runs,
                }
                for name, gates in built.items()
            ]
    return rows


def suite_sizes(design: Design, runs: int) -> list[Json]:
    """What a suite of so many times the fixed size is worth to a candidate that lost nothing."""
    rows = []
    for discordance in (0.05, 0.1):
        size = fixed_size(design, discordance)
        for factor in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5):
            draw = outcomes(np.random.default_rng([SEED, 2]), discordance, 0.0)
            gates = sequential(design, draw, runs, math.ceil(factor * size))
            rows.append(
                {
                    "discordance": discordance,
                    "suite": math.ceil(factor * size),
                    "of_fixed_size": factor,
                    "passed": gates.passed,
                    "failed": gates.failed,
                    "inconclusive": round(gates.inconclusive, 6),
                }
            )
    return rows


def presets(runs: int) -> dict[str, Json]:
    """What each preset lets through and how often it rejects what is harmless."""
    return {name: preset(limits, runs) for name, limits in PRESETS.items()}


def preset(limits: GateLimits, runs: int) -> Json:
    """Reasoning at 5 % discordance over a range of drops, and a whole gate of four tests."""
    discordance, tests = 0.05, 4
    design = Design(limits.reasoning_margin, limits.alpha, limits.beta / tests)
    largest = math.ceil(LARGEST * items_to_pass(design, discordance))
    curve = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
        drop = share * design.margin
        draw = outcomes(np.random.default_rng([SEED, 3]), discordance, drop)
        gates = sequential(design, draw, runs, largest)
        curve.append(
            {"drop": drop, "passed": gates.passed, "failed": gates.failed, "items": gates.items}
        )
    return {
        "alpha": limits.alpha,
        "beta": limits.beta,
        "reasoning_margin": limits.reasoning_margin,
        "retention_margin": limits.retention_margin,
        "locality_margin": limits.locality_margin,
        "learnt_share": limits.learnt_share,
        "discordance": discordance,
        "items_at_no_drop": round(curve[0]["items"]),
        "expected_items": {str(d): items_to_pass(design, d) for d in DISCORDANCE},
        "suite": largest,
        "curve": curve,
        "harmless": harmless(limits, tests, runs),
    }


def harmless(limits: GateLimits, tests: int, runs: int) -> Json:
    """A gate of four independent tests on a candidate that lost nothing anywhere."""
    margins = (limits.reasoning_margin,) * 2 + (limits.retention_margin, limits.locality_margin)
    passed, failed = np.ones(runs, dtype=bool), np.zeros(runs, dtype=bool)
    for number, margin in enumerate(margins):
        design = Design(margin, limits.alpha, limits.beta / tests)
        largest = math.ceil(LARGEST * items_to_pass(design, 0.05))
        draw = outcomes(np.random.default_rng([SEED, 4, number]), 0.05, 0.0)
        won, lost, _ = decide(design, draw, runs, largest)
        passed &= won
        failed |= lost
    return {"tests": tests, "passed": float(passed.mean()), "failed": float(failed.mean())}


def beside_peers(design: Design, runs: int) -> Json:
    """One gate and forty batches, beside what others gate with."""
    items, few = peers.ITEMS, peers.FEW_ITEMS
    drops = (0.0, 0.005, 0.01, 0.02, 0.03)
    gates = {
        "unpaired z-test": peers.unpaired_z,
        "McNemar": peers.mcnemar,
        "palorad": peers.non_inferiority,
    }
    return {
        "items": items,
        "few_items": few,
        "accuracy": peers.ACCURACY,
        "loss_per_batch": peers.LOSS,
        "batches": peers.BATCHES,
        "drops": drops,
        "accepted": [
            {
                "gate": name,
                "items": size,
                "accepted": peers.one_gate(gate(size, design), drops, 10 * runs, SEED),
            }
            for size in (few, items)
            for name, gate in gates.items()
        ],
        "accumulated_loss": {
            f"{name}, {'frozen reference' if frozen else 'predecessor only'}": peers.leak(
                gate(items, design), frozen=frozen, runs=runs, seed=SEED
            )
            for name, gate in gates.items()
            for frozen in (False, True)
        },
    }


def provenance() -> Json:
    """Where and with what this was measured."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": f"{platform.machine()}, {platform.system()}, one core",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "seed": SEED,
    }


def measure(runs: int) -> Json:
    """Everything, from `runs` gates a cell."""
    began = time.monotonic()
    limits = PRESETS["balanced"]
    design = Design(limits.reasoning_margin, limits.alpha, limits.beta)
    return {
        "alpha": design.alpha,
        "power": 1 - design.beta,
        "largest": LARGEST,
        "cells": calibration(design, runs),
        "constructions": constructions(design, runs // 5),
        "suite_sizes": suite_sizes(design, runs),
        "presets": presets(runs),
        "monotony": monotony(5 * runs, SEED),
        "instability": instability(design, references=runs // 50, gates=400, seed=SEED),
        "peers": beside_peers(design, runs // 20),
        "shared_draws": shared_draws(design, runs // 20, SEED),
        "seconds": round(time.monotonic() - began),
        **provenance(),
    }


def main() -> None:
    """Measure, write, plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="gates a cell")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gate.json")
    parser.add_argument("--images", type=Path, default=ROOT / "docs/img")
    parser.add_argument("--plots-only", action="store_true", help="draw what is in --out")
    args = parser.parse_args()
    if not args.plots_only:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(measure(args.runs), indent=1) + "\n")
    result = json.loads(args.out.read_text())
    draw_all(result, args.images)
    fill(result, ROOT / "benchmarks/results/gate.md")


if __name__ == "__main__":
    main()
