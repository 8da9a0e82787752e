"""Whether the durability checks find what breaks palorad: one mutation after the other, in a copy.

    python -m benchmarks.durability --parts mutants

Each is fuzzed first; one that lives through all the steps meets the samples of power cuts, kills
and faults. Writes benchmarks/results/mutants.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
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
PASSED, FAILED = 0, 1  # as pytest says it
SAMPLES: Final = {
    "power cuts": "tests/durability/test_power.py",
    "kills": "tests/durability/test_crash.py",
    "faults": "tests/durability/test_faults.py",
}


@dataclass(frozen=True)
class Result:
    """How a mutant ended: by what it was found, "" where by nothing, and by which sentence."""

    mutation: Mutation
    by: str
    said: str

    @property
    def found(self) -> bool:
        """Whether any check noticed it."""
        return bool(self.by)


def run() -> dict[str, Any]:
    """All mutants; how many there are, and how many were found."""
    began = time.monotonic()
    results = attempt(MUTATIONS)
    minutes = round((time.monotonic() - began) / 60)
    TABLE.write_text(table(results, minutes))
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
        for name, tests in SAMPLES.items():
            result = result if result.found else _sampled(mutation, copy, name, tests)
    print(f"{mutation.name}: {result.by or 'not found'}: {result.said}", flush=True)
    return result


def _fuzzed(mutation: Mutation, copy: Path) -> Result:
    fuzz = [sys.executable, "-m", "benchmarks.durability.fuzz"]
    bounds = ["--lives", "1000", "--steps", str(STEPS), "--first"]
    done = _run([*fuzz, *bounds], copy)
    if done is None:
        return Result(mutation, "", f"not within {PATIENCE_S:.0f} s")
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise RuntimeError(f"{mutation.name}: {done.stderr[-2000:]}")
    answer = json.loads(lines[-1])
    said = next(iter(answer["failures"].values()), "")
    by = f"fuzzing, {answer['steps']} steps" if answer["failures"] else ""
    return Result(mutation, by, said)


def _sampled(mutation: Mutation, copy: Path, name: str, path: str) -> Result:
    """The same through one sample of the durability tests."""
    done = _run([sys.executable, "-m", "pytest", "-m", "durability", "-x", "-q", path], copy)
    if done is None:
        return Result(mutation, "", f"not within {PATIENCE_S:.0f} s")
    if done.returncode not in (PASSED, FAILED):
        raise RuntimeError(f"{mutation.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return Result(mutation, name if done.returncode == FAILED else "", "".join(failed[:1]))


def _run(command: Sequence[str], copy: Path) -> subprocess.CompletedProcess[str] | None:
    """A command in a copy of the tree; None where it took too long."""
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    try:
        return subprocess.run(
            command,
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None


def table(results: Sequence[Result], minutes: int) -> str:
    """All mutants as a page."""
    found = sum(result.found for result in results)
    rows = [
        "# Mutants",
        "",
        "Each is one change of the source, made in a copy. The fuzz machine has "
        f"{STEPS} steps to notice, then the samples of power cuts, kills and faults have a turn.",
        "",
        f"{found} of {len(results)} found in {minutes} minutes, {AT_ONCE} at a time. Written by "
        "`python -m benchmarks.durability --parts mutants`.",
        "",
        "| mutant | file | what was changed | found by |",
        "|---|---|---|---|",
    ]
    for result in results:
        mutation = result.mutation
        by = result.by or "not found"
        rows.append(f"| {mutation.name} | `{mutation.file}` | {mutation.what} | {by} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Some mutants by name, on the screen only."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    chosen = parser.parse_args()
    attempt([m for m in MUTATIONS if not chosen.names or m.name in chosen.names])


if __name__ == "__main__":
    main()
