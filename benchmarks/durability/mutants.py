"""Whether the fuzz machine finds what breaks palorad: one mutation after the other, in a copy.

    python -m benchmarks.durability --parts mutants

Writes benchmarks/results/mutants.md. A mutant that lives through all its steps is not found.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.durability.mutations import MUTATIONS, Mutation

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = ROOT / "benchmarks" / "results" / "mutants.md"
COPIED: Final = ("adapters", "benchmarks", "daemon", "policies", "tests", "pyproject.toml")
STEPS: Final = 3000
PATIENCE_S: Final = 900.0
AT_ONCE: Final = 2


@dataclass(frozen=True)
class Result:
    """How a mutant ended: found after so many steps, by which sentence."""

    mutation: Mutation
    found: bool
    steps: int
    said: str


def run() -> dict[str, Any]:
    """All mutants; how many there are, and how many were found."""
    results = attempt(MUTATIONS)
    TABLE.write_text(table(results))
    return {"mutants": len(results), "mutants_found": sum(result.found for result in results)}


def attempt(mutations: Sequence[Mutation], at_once: int = AT_ONCE) -> list[Result]:
    """Each mutant in a copy of the tree of its own."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(_attempt, mutations))


def _attempt(mutation: Mutation) -> Result:
    with tempfile.TemporaryDirectory(prefix="palorad-mutant-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "results")
                shutil.copytree(source, copy / name, ignore=ignored)
            else:
                shutil.copy(source, copy / name)
        path = copy / mutation.file
        text = path.read_text()
        if text.count(mutation.old) != 1:
            raise ValueError(f"{mutation.name}: {mutation.file} has changed; mutate it anew")
        path.write_text(text.replace(mutation.old, mutation.new))
        result = _fuzzed(mutation, copy)
    print(f"{mutation.name}: {result.found} after {result.steps}: {result.said}", flush=True)
    return result


def _fuzzed(mutation: Mutation, copy: Path) -> Result:
    fuzz = [sys.executable, "-m", "benchmarks.durability.fuzz"]
    bounds = ["--lives", "1000", "--steps", str(STEPS), "--first"]
    try:
        done = subprocess.run(
            [*fuzz, *bounds],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Result(mutation, False, STEPS, f"not within {PATIENCE_S:.0f} s")
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise RuntimeError(f"{mutation.name}: {done.stderr[-2000:]}")
    answer = json.loads(lines[-1])
    said = next(iter(answer["failures"].values()), "")
    return Result(mutation, bool(answer["failures"]), answer["steps"], said)


def table(results: Sequence[Result]) -> str:
    """All mutants as a page."""
    found = sum(result.found for result in results)
    rows = [
        "# Mutants",
        "",
        "Each is one change of the source, made in a copy; the fuzz machine has "
        f"{STEPS} steps to notice. Written by `python -m benchmarks.durability --parts mutants`.",
        "",
        f"{found} of {len(results)} found.",
        "",
        "| mutant | file | what was changed | found after steps |",
        "|---|---|---|---|",
    ]
    for result in results:
        mutation = result.mutation
        after = str(result.steps) if result.found else f"not in {result.steps}"
        rows.append(f"| {mutation.name} | `{mutation.file}` | {mutation.what} | {after} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Some mutants by name, on the screen only."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    chosen = parser.parse_args()
    attempt([m for m in MUTATIONS if not chosen.names or m.name in chosen.names])


if __name__ == "__main__":
    main()
