"""Compare ways of learning: `python -m benchmarks.learning [--quick] [--only METHOD …]`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Final

import torch

from benchmarks import pages
from benchmarks.learning import tables
from benchmarks.learning.bases import BASES
from benchmarks.learning.harness import PROTOCOLS, Bench, Run, add, finished, perform
from benchmarks.learning.methods import WAYS

RESULTS: Final = Path("benchmarks/results")
DOCUMENTED: Final = RESULTS / "learning.json"
PAGE: Final = Path("docs/method.md")
ALT: Final = "Recall against reasoning kept, by method"
QUICK: Final = ("plain", "palora", "null space", "replay", "palorad")
DEFAULT: Final = "palorad"


def chosen_rate(rows: Sequence[tables.Row], run: Run) -> float | None:
    """The rate that did best on selection seeds in one injection: recall and reasoning together.

    The product keeps its own rule; a method that was never swept takes its middle rate.
    """
    if run.method == DEFAULT:
        return None
    swept: dict[float, list[float]] = {}
    for row in rows:
        if (row["base"], row["method"], row["purpose"]) != (run.base, run.method, "selection"):
            continue
        if row["protocol"] == "one" and row["rate"] is not None:
            found = tables.figures([row])
            score = min(found["recall_all"][0], found["reasoning_vs_reference"][0])
            swept.setdefault(row["rate"], []).append(score)
    if not swept:
        rates = WAYS[run.method].rates
        return rates[len(rates) // 2] if rates else None
    return max(swept, key=lambda rate: sum(swept[rate]) / len(swept[rate]))


def sweep(methods: Sequence[str], base: str, problems: int) -> Iterator[Run]:
    """One injection at each rate, on the selection seed."""
    for method in methods:
        if method != DEFAULT:
            for rate in WAYS[method].rates:
                yield Run(base, "one", method, 0, "selection", rate, problems=problems)


def main(arguments: list[str] | None = None) -> int:
    """Perform what is missing, then write learning.json, the tables and the plot."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--protocol", nargs="+", choices=list(PROTOCOLS), default=["one"])
    parser.add_argument("--base", nargs="+", choices=list(BASES), default=list(BASES))
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--examples", type=int, help="solutions of the skill that are known")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="five methods, one seed, no sweep")
    parser.add_argument("--no-sweep", action="store_true", help="every method at its middle rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    methods = [m for m in given.only if not given.quick or m in QUICK]
    seeds = given.seeds[:1] if given.quick else given.seeds
    results = given.out / ("learning-quick.jsonl" if given.quick else "learning.jsonl")
    with tempfile.TemporaryDirectory(prefix="palorad-learning-") as folder:
        bench = Bench(Path(folder))
        for base in given.base:
            if not (given.quick or given.no_sweep):
                for run in sweep(methods, base, given.problems):
                    _perform(run, results, bench)
            for protocol, seed, method in product(given.protocol, seeds, methods):
                run = Run(base, protocol, method, seed, "report", problems=given.problems)
                rate = chosen_rate(list(finished(results).values()), run)
                _perform(replace(run, rate=rate, examples=given.examples), results, bench)
    write(results, given.out)
    return 0


def write(results: Path, out: Path) -> None:
    """learning.json, the tables and the plot from the rows that there are."""
    found = tables.summary(finished(results).values(), DEFAULT)
    target = out / f"{results.stem}.json"
    target.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (out / f"{results.stem}.md").write_text(tables.table(found["results"]), "utf-8")
    if not found["results"]:
        return
    tables.draw(found["results"], out / f"{results.stem}.png")
    if target == DOCUMENTED:
        pages.fill(
            PAGE, {"learning": f"{tables.table(found['results'])}\n![{ALT}](img/learning.png)"}
        )
        tables.draw(found["results"], PAGE.parent / "img/learning.png")


def _perform(run: Run, results: Path, bench: Bench) -> None:
    if run.key in finished(results):
        return
    began = time.monotonic()
    row = perform(run, BASES[run.base], PROTOCOLS[run.protocol], bench)
    add(results, row)
    found = tables.figures([row])
    shown = {k: found[k][0] for k in ("recall_all", "reasoning_vs_reference", "locality")}
    sys.stdout.write(
        f"{run.base} {run.protocol} {run.method} seed {run.seed} ({run.purpose}, rate {run.rate}): "
        f"{shown} in {time.monotonic() - began:.0f} s\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
