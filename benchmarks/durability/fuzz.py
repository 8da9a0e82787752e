"""Twenty thousand steps of whatever may happen, in lives that a seed repeats.

python -m benchmarks.durability --parts fuzz
python -m benchmarks.durability.fuzz --seed 7 --lives 1      # one life again, and shortened
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

import structlog
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.internal.conjecture import engine
from hypothesis.stateful import run_state_machine_as_test

from tests.support.life.machine import STEPS, Life

WANTED: Final = 20_000
EXAMPLES: Final = 10
LENGTH: Final = 50


def run() -> dict[str, Any]:
    """As many lives as it takes; how many steps they had, and how many of them failed."""
    _quiet()
    failures, number, began = [], 0, time.monotonic()
    while STEPS["taken"] < WANTED:
        number += 1
        if (failure := life(number)) is not None:
            failures.append(number)
            print(f"seed {number}: {failure}", file=sys.stderr, flush=True)
    minutes = round((time.monotonic() - began) / 60, 1)
    return {
        "fuzz_steps": STEPS["taken"],
        "fuzz_failures": len(failures),
        "fuzz_failing_seeds": failures,
        "fuzz_minutes": minutes,
    }


def life(number: int, *, shortens: bool = False) -> str | None:
    """What goes wrong in the lives of one seed, in one line; None where nothing does."""
    machine = seed(number)(type("Life", (Life,), {}))
    phases = (Phase.generate, Phase.shrink) if shortens else (Phase.generate,)
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=LENGTH,
        deadline=None,
        database=None,
        derandomize=False,
        phases=phases,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.normal if shortens else Verbosity.quiet,
    )
    try:
        run_state_machine_as_test(machine, settings=chosen)
    except Exception as error:
        if shortens:
            traceback.print_exc()
        return _line(error)
    return None


def _line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/tests/support/" in f.filename or "/daemon/" in f.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    said = str(error).strip().splitlines()
    return f"{type(error).__name__} at {where}: {said[0] if said else ''}"[:300]


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def main() -> int:
    """Some lives; the figures as one line of JSON. The status is 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lives", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--first", action="store_true", help="stop at the first failure")
    parser.add_argument("--shorten", action="store_true", help="find the shortest life that fails")
    parser.add_argument("--shorten-s", type=int, default=60)
    chosen = parser.parse_args()
    _quiet()
    engine.MAX_SHRINKING_SECONDS = chosen.shorten_s
    failures: dict[int, str] = {}
    for number in range(chosen.seed, chosen.seed + chosen.lives):
        failure = life(number, shortens=chosen.shorten)
        if failure is not None:
            failures[number] = failure
            if chosen.first:
                break
        if STEPS["taken"] >= chosen.steps:
            break
    print(json.dumps({"steps": STEPS["taken"], "failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
