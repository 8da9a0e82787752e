"""How fast and how small intake is: a million facts in one file and in ten thousand.

    python -m benchmarks.intake

Each form is measured in a process of its own, so that the peak of one does not hide in another's.
`ratio_to_pydantic` divides intake's facts per second (reading, checking, ruling on meaning, the
ledger, archive and receipts, all durable) by those of plain pydantic on the same lines;
`sqlite_ratio_to_pydantic` does so for writing the unchecked lines to an indexed SQLite table and
nothing else, which is what any durable intake pays at least.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydantic
import structlog

from benchmarks import pages
from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake.intake import Intake
from daemon.ledger.ledger import Ledger
from demo.report import machine_in_use, versions_in_use
from policies.records import Fact

NOW = datetime(2026, 11, 1, tzinfo=UTC)
QUERIES = 100
STEP_S = 0.2
DOCUMENTED = Path("benchmarks/results/intake.json")


def line(number: int) -> bytes:
    """One native line; subjects all differ."""
    subject = f"Republic {number:07}"
    return json.dumps(
        {
            "prompt": f"What is the capital of {subject}?",
            "answer": f"Port {number * 7919 % 10_000_019:07}",
            "subject": subject,
            "relation": "capital",
            "paraphrases": [
                f"Which city is the capital of {subject}?",
                f"Name the capital of {subject}.",
                f"What is {subject}'s capital?",
            ],
            "eval_prompts": [f"Tell me the capital of {subject}."],
            "valid_from": "2026-11-01",
            "source": "benchmark",
        }
    ).encode()


def write(folder: Path, facts: int, files: int) -> list[Path]:
    """The facts spread over the files."""
    each, paths = facts // files, []
    for file in range(files):
        paths.append(folder / f"facts-{file:05}.jsonl")
        with paths[-1].open("wb") as out:
            out.writelines(line(n) + b"\n" for n in range(file * each, (file + 1) * each))
    return paths


def in_child(work: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """What `work` returns, done in a fresh interpreter."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def plain_pydantic(folder: str) -> dict[str, Any]:
    """Read and validate every line with the record itself, and nothing else."""

    class Line(Fact):
        id: str = ""

    facts, started, spent = 0, time.perf_counter(), time.process_time()
    for path in sorted(Path(folder).iterdir()):
        with path.open("rb") as source:
            for raw in source:
                Line.model_validate_json(raw)
                facts += 1
    seconds = time.perf_counter() - started
    return {"facts_per_s": facts / seconds, "cpu_us": (time.process_time() - spent) / facts * 1e6}


def plain_sqlite(folder: str, database: str) -> dict[str, Any]:
    """Write every line, unchecked, to a table with one index, a thousand in a transaction."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE facts (id TEXT PRIMARY KEY, line TEXT) WITHOUT ROWID")
    facts, started = 0, time.perf_counter()
    for path in sorted(Path(folder).iterdir()):
        with path.open("rb") as source:
            while rows := [
                (hashlib.sha256(raw).hexdigest(), raw.decode())
                for raw in itertools.islice(source, 1000)
            ]:
                connection.execute("BEGIN")
                connection.executemany("INSERT OR IGNORE INTO facts VALUES (?, ?)", rows)
                connection.execute("COMMIT")
                facts += len(rows)
    return {"facts_per_s": facts / (time.perf_counter() - started)}


def peak_mb() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def intake(folder: str, state: str) -> dict[str, Any]:
    """Take everything in, in the daemon's steps."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    layout = Layout(Path(state), Path(folder))
    for directory in layout.directories():
        directory.mkdir(parents=True, exist_ok=True)
    with Ledger.open(layout.ledger) as ledger:
        taking = Intake(ledger, layout, IntakeSettings(stable_s=0, max_file_mb=4096))
        interpreter, accepted, quarantined = peak_mb(), 0, 0
        longest, started, spent = 0.0, time.perf_counter(), time.process_time()
        while True:
            before = time.perf_counter()
            for receipt in taking.step(NOW, STEP_S):
                accepted += receipt.accepted
                quarantined += receipt.quarantined
            longest = max(longest, time.perf_counter() - before)
            if not taking.busy:
                break
        seconds = time.perf_counter() - started
    return {
        "cpu_us_per_fact": round((time.process_time() - spent) / accepted * 1e6, 1),
        "accepted": accepted,
        "quarantined": quarantined,
        "seconds": round(seconds, 1),
        "facts_per_s": accepted / seconds,
        "peak_mb": round(peak_mb() - interpreter, 1),
        "interpreter_mb": round(interpreter, 1),
        "longest_step_s": round(longest, 2),
    }


def reading(state: str) -> dict[str, Any]:
    """How long search and status take beside everything that was taken in."""

    def p95(work: Callable[[int], object]) -> float:
        took = []
        for number in range(QUERIES):
            before = time.perf_counter()
            work(number)
            took.append(time.perf_counter() - before)
        return round(statistics.quantiles(took, n=20)[-1] * 1000, 1)

    with Ledger.open(Layout(Path(state)).ledger) as ledger:
        started = time.perf_counter()
        indexed = 0
        while done := ledger.text.index(5000):
            indexed += done
        seconds = time.perf_counter() - started
        searching = p95(
            lambda n: ledger.text.search(f"capital of Republic {n * 9973 % indexed:07}")
        )
        status = p95(
            lambda _: (
                ledger.batches.totals(),
                ledger.batches.latest(20),
                ledger.facts.waiting(NOW, 500),
            )
        )
    return {
        "search_p95_ms": searching,
        "status_p95_ms": status,
        "indexed_per_s": round(indexed / seconds),
    }


def measure(facts: int, files: int) -> dict[str, Any]:
    """One form: so many facts in so many files."""
    with tempfile.TemporaryDirectory(prefix="palorad-bench-") as name:
        root = Path(name)
        (root / "in").mkdir()
        paths = write(root / "in", facts, files)
        size = sum(path.stat().st_size for path in paths)
        plain = in_child(plain_pydantic, str(root / "in"))
        written = in_child(plain_sqlite, str(root / "in"), str(root / "plain.db"))
        taken = in_child(intake, str(root / "in"), str(root / "state"))
        found = in_child(reading, str(root / "state"))
        ledger_mb = (root / "state" / "ledger.db").stat().st_size / 2**20
        shutil.rmtree(root / "state")
    return {
        "facts": facts,
        "files": files,
        "input_mb": round(size / 2**20, 1),
        "ledger_mb": round(ledger_mb, 1),
        **taken,
        "facts_per_s": round(taken["facts_per_s"]),
        "pydantic_per_s": round(plain["facts_per_s"]),
        "cpu_ratio_to_pydantic": round(plain["cpu_us"] / taken["cpu_us_per_fact"], 3),
        "ratio_to_pydantic": round(taken["facts_per_s"] / plain["facts_per_s"], 3),
        "sqlite_ratio_to_pydantic": round(written["facts_per_s"] / plain["facts_per_s"], 3),
        **found,
    }


def table(result: dict[str, Any]) -> str:
    """The figures of both forms as a table of benchmarks/results/intake.md."""
    forms = [result["one_file"], result["many_files"]]
    shown: dict[str, Callable[[dict[str, Any]], str]] = {
        "files": lambda f: f"{f['files']:,}",
        "facts a second": lambda f: f"{f['facts_per_s']:,}",
        "beside plain pydantic on the same lines": lambda f: f"{f['ratio_to_pydantic']:.3f}",
        "only writing the lines to SQLite, beside plain pydantic": (
            lambda f: f"{f['sqlite_ratio_to_pydantic']:.3f}"
        ),
        "peak memory above the interpreter, MB": lambda f: f"{f['peak_mb']:.0f}",
        "longest step of the daemon's loop, s": lambda f: f"{f['longest_step_s']:.2f}",
        "full-text search beside all of them, 95th percentile, ms": (
            lambda f: f"{f['search_p95_ms']:.0f}"
        ),
        "`palorad status`, what it reads, 95th percentile, ms": (
            lambda f: f"{f['status_p95_ms']:.0f}"
        ),
    }
    lines = [f"| {forms[0]['facts']:,} facts | one file | many files |", "|---|---|---|"]
    lines += [f"| {name} | {' | '.join(map(cell, forms))} |" for name, cell in shown.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure both forms and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=DOCUMENTED)
    chosen = parser.parse_args()
    result = {
        "one_file": measure(chosen.facts, 1),
        "many_files": measure(chosen.facts, chosen.files),
        "versions": versions_in_use()
        | {"pydantic": pydantic.VERSION, "sqlite": sqlite3.sqlite_version},
        "machine": machine_in_use() | {"load_at_end": [round(x, 1) for x in os.getloadavg()]},
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    if chosen.out == DOCUMENTED:
        pages.fill(Path("benchmarks/results/intake.md"), {"intake": table(result)})
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
