"""Compare methods: `python -m benchmarks.learning [--quick | --tables] [--only METHOD …]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Final

from benchmarks.learning import figures, headline, report
from benchmarks.learning.bases import BASES
from benchmarks.learning.methods import METHODS
from benchmarks.learning.performer import Performer
from benchmarks.learning.rows import finished, of_today
from benchmarks.learning.runs import PROTOCOLS, LearningRun

RESULTS: Final = Path("benchmarks/results")
DOCUMENTED: Final = RESULTS / "learning.json"
QUICK: Final = ("plain LoRA", "palora", "null space", "replay", "palorad, small batch")


def best_rate(rows: Sequence[figures.Row], base: str, method: str) -> float | None:
    """The rate that did best on selection seeds in one injection: by the lower of accuracy and
    reasoning, and of equals the one with more accuracy on OOD paraphrases."""
    swept: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        if (row["base"], row["method"], row["purpose"]) != (base, method, "selection"):
            continue
        if row["protocol"] == "one" and row["rate"] is not None:
            one = figures.values([row], -1)
            worse = min(one["accuracy"], one["reasoning_vs_base"])
            swept.setdefault(row["rate"], []).append((worse, one["accuracy_ood"]))
    return max(
        swept, key=lambda rate: tuple(map(fmean, zip(*swept[rate], strict=True))), default=None
    )


def chosen_rate(rows: Sequence[figures.Row], base: str, method: str) -> float | None:
    """The best of a sweep; a method that was never swept takes its middle rate, one without rates
    the product's default."""
    rates = METHODS[method].rates
    middle = rates[len(rates) // 2] if rates else None
    return best_rate(rows, base, method) or middle


def counted(rows: Iterable[figures.Row]) -> list[figures.Row]:
    """The rows of today; of those that are reported none at a rate that a sweep did not choose."""
    today = of_today(rows)
    named = {(row["base"], row["method"]) for row in today}
    best = {names: best_rate(today, *names) for names in named}
    return [
        row
        for row in today
        if row["purpose"] == "selection" or best[row["base"], row["method"]] in (None, row["rate"])
    ]


def sweep(given: argparse.Namespace, methods: Sequence[str]) -> Iterator[LearningRun]:
    """One injection at each rate, on the selection seed."""
    for base, method in product(given.base, methods):
        own = METHODS[method].rates
        for rate in (given.rates or own) if own else ():
            yield LearningRun(
                base, PROTOCOLS["one"], method, 0, "selection", rate, problems=given.problems
            )


def reports(
    given: argparse.Namespace, methods: Sequence[str], rows: Sequence[figures.Row]
) -> Iterator[LearningRun]:
    """What is reported: every protocol, seed and method, at the rate that its sweep chose."""
    for base, protocol, seed, method in product(given.base, given.protocol, given.seeds, methods):
        rate = chosen_rate(rows, base, method)
        asked = (given.examples, given.problems)
        yield LearningRun(base, PROTOCOLS[protocol], method, seed, "report", rate, *asked)


def main(arguments: list[str] | None = None) -> int:
    """Perform what is missing, then write the summary, pages and pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--protocol", nargs="+", choices=list(PROTOCOLS), default=["one"])
    parser.add_argument("--base", nargs="+", choices=list(BASES), default=["mini"])
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--examples", type=int, help="reasoning traces of the skill that are given")
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="five methods, one seed, no sweep")
    parser.add_argument(
        "--no-sweep", action="store_true", help="rates of earlier sweeps, or middle"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", help="to sweep instead of each method's own"
    )
    parser.add_argument("--tables", action="store_true", help="only write what the rows show")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    methods = [m for m in given.only if not given.quick or m in QUICK]
    if given.quick:
        given.seeds = given.seeds[:1]
    results = given.out / ("learning-quick.jsonl" if given.quick else "learning.jsonl")
    if given.tables:
        write(results, given.out)
        return 0
    for base in given.base:
        BASES[base].knowing(given.examples).prepare()
    with Performer(results, given.jobs, given.threads) as performer:
        if not (given.quick or given.no_sweep):
            performer.perform(sweep(given, methods))
        rows = of_today(finished(results).values())
        performer.perform(reports(given, methods, rows))
    write(results, given.out)
    return 0


def write(results: Path, out: Path) -> None:
    """What the rows of `results` show: a summary, pages and pictures in the folder `out`."""
    name, rows = results.stem, counted(finished(results).values())
    found = {**figures.summary(rows), "headline": headline.differences(rows)}
    (out / f"{name}.json").write_text(
        json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
    report.write(found, out, name)
    if out / f"{name}.json" == DOCUMENTED:
        report.document(found)


if __name__ == "__main__":
    sys.exit(main())
