"""How long planning holds up the daemon's loop beside many facts.

    python -m benchmarks.planning

A ledger learns `--batches` batches of 100 facts, one plan after another, each by a warm start from
the one before. Then 500 more facts wait. Measured, over `--repeats` rounds, are the snapshot with
the decision (`snapshot_ms`), making the plan (`make_plan_ms`) and putting the request of its child
together (`train_request_ms`: it reads the facts to learn and `train.max_replay` facts to replay,
with their paraphrases), and the same for a rebuild from scratch, whose request holds every fact.
Requests are put together in a thread, beside the loop. `processor` holds the same without waiting
for the disk or for other processes, `spread` the least and the most by the clock.
`rows` counts what plans keep by fact, which does not grow with what they replay.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Adapter, PlanHead, Served
from daemon.loop.requests import limits_of, train_request
from daemon.training.messages import ProbeReport
from demo.report import machine_in_use, versions_in_use
from policies.facts.supersession import FactRelation, Ruling
from policies.gate.records import Outcome, Verdict
from policies.planning import MakePlan, next_action, rebuild
from policies.records import Batch, Fact, PlanKind, PlanState

T = TypeVar("T")
NOW: Final = datetime(2026, 11, 1, tzinfo=UTC)
EACH: Final = 100
MEASURED: Final = ("snapshot_ms", "make_plan_ms", "train_request_ms")
PARAPHRASES: Final = 8
PASSED: Final = Verdict(outcome=Outcome.PASS, rule="benchmark", reasons=(), suites=())
DOCUMENTED: Final = Path("benchmarks/results/planning.json")


def fact(number: int) -> Fact:
    """One fact with the prompts that a batch usually gives."""
    subject = f"Republic {number:07}"
    return Fact(
        id=f"fact-{number:07}",
        prompt=f"What is the capital of {subject}?",
        answer=f"Port {number * 7919 % 10_000_019:07}",
        subject=subject,
        relation="capital",
        paraphrases=(f"Name the capital of {subject}.", f"What is {subject}'s capital?"),
        eval_prompts=(f"Tell me the capital of {subject}.",),
    )


def admit(ledger: Ledger, name: str, first: int, count: int) -> None:
    """One batch of facts that are all new, with paraphrases of the live model."""
    batch = Batch(id=name, name=name, received_at=NOW, source="inbox", accepted=0, quarantined=0)
    facts = [fact(number) for number in range(first, first + count)]
    ledger.admission.begin_batch(batch)
    new = Ruling(relation=FactRelation.NEW)
    ledger.admission.append_facts(name, [(f, new) for f in facts], [], NOW, line=count)
    ledger.admission.finish_batch(name, NOW)
    ledger.paraphrases.keep(
        {f.id: [f"{n}: what is {f.subject}'s capital?" for n in range(PARAPHRASES)] for f in facts}
    )


def learn(ledger: Ledger, plan: PlanHead) -> None:
    """The plan goes live."""
    adapter = Adapter(sha256=f"{plan.id:064x}", rank=plan.rank)
    served = Served(name=f"palora-{plan.id:06}", sha256=f"{plan.id:x}")
    ledger.steps.trained(plan.id, adapter, served, NOW)
    ledger.steps.judged(plan.id, PASSED, (), PlanState.PASSED, NOW)
    ledger.revisions.promote(plan.id, served, NOW)


def timed(took: list[tuple[float, float]], work: Callable[[], T]) -> T:
    """What `work` returns; how long it took, by the clock and of the processor, in ms, is appended
    to `took`.
    """
    clock, processor = time.perf_counter(), time.thread_time()
    result = work()
    took.append(((time.perf_counter() - clock) * 1000, (time.thread_time() - processor) * 1000))
    return result


def built(root: Path, batches: int, settings: Settings) -> Ledger:
    """A ledger that has learnt so many batches."""
    ledger = Ledger.open(root / "ledger.db")
    ledger.db.connection.execute("PRAGMA synchronous=OFF")
    ledger.revisions.ensure_base("base", NOW)
    limits = limits_of(settings)
    for number in range(batches):
        admit(ledger, f"batch-{number:06}", number * EACH, EACH)
        action = next_action(ledger.planning.snapshot(NOW, limits), NOW)
        if not isinstance(action, MakePlan):
            raise TypeError(f"batch {number} is not planned: {action}")
        learn(ledger, ledger.planning.make_plan(action, NOW, max_replay=settings.train.max_replay))
    ledger.db.connection.execute("PRAGMA synchronous=FULL")
    return ledger


def written(
    ledger: Ledger, settings: Settings, plan: PlanHead, probe: ProbeReport
) -> dict[str, int]:
    """A plan's request, put together row by row; how many rows each list has."""
    _, rows = train_request(ledger, settings, plan, probe)
    return {field: sum(1 for _ in items) for field, items in rows.items()}


def measure(ledger: Ledger, settings: Settings, repeats: int, kind: PlanKind) -> dict[str, Any]:
    """Plan `repeats` times what waits, or a rebuild; each plan is cancelled again."""
    model = settings.model.path
    probe = ProbeReport(
        probe=model,
        served_dir=model,
        served_sha256="base",
        base_sha256="base",
        fitted=True,
        seconds=0.0,
    )
    limits = limits_of(settings)
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in MEASURED}
    facts = replays = 0

    def decided() -> MakePlan:
        snapshot = ledger.planning.snapshot(NOW, limits)
        action = next_action(snapshot, NOW)
        if kind is not PlanKind.LEARN:
            action = rebuild(snapshot, kind, "benchmark")
        if not isinstance(action, MakePlan):
            raise TypeError(f"nothing is planned: {action}")
        return action

    for _ in range(repeats):
        action = timed(took["snapshot_ms"], decided)
        make = partial(ledger.planning.make_plan, max_replay=settings.train.max_replay)
        plan = timed(took["make_plan_ms"], partial(make, action, NOW))
        counted = timed(took["train_request_ms"], partial(written, ledger, settings, plan, probe))
        facts, replays = counted["facts"], counted["replay"]
        ledger.plans.move(plan.id, PlanState.PLANNED, PlanState.CANCELLED, NOW)
    clock = {name: [by_clock for by_clock, _ in values] for name, values in took.items()}
    processor = {name: [of_cpu for _, of_cpu in values] for name, values in took.items()}
    return {
        **{name: round(statistics.median(values), 1) for name, values in clock.items()},
        "spread": {name: [round(min(v), 1), round(max(v), 1)] for name, v in clock.items()},
        "processor": {name: round(statistics.median(v), 1) for name, v in processor.items()},
        "learns": facts,
        "replays": replays,
    }


def main() -> None:
    """Build the ledger, measure, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=DOCUMENTED)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="palorad-bench-") as name:
        root = Path(name)
        (root / "model").mkdir()
        tree: dict[str, Any] = {"state_dir": root, "model": {"path": root / "model"}}
        settings = Settings(**tree).rooted(root)
        with built(root, chosen.batches, settings) as ledger:
            admit(ledger, "waiting", chosen.batches * EACH, settings.train.max_facts)
            rows = int(ledger.db.one("SELECT count(*) FROM plan_facts"))
            ledger_mb = (root / "ledger.db").stat().st_size / 2**20
            learning = measure(ledger, settings, chosen.repeats, PlanKind.LEARN)
            rebuilding = measure(ledger, settings, chosen.repeats, PlanKind.CONSOLIDATE)
        result = {
            "facts": chosen.batches * EACH,
            "batches": chosen.batches,
            **learning,
            "rebuild": rebuilding,
            "rows": rows,
            "ledger_mb": round(ledger_mb, 1),
            "repeats": chosen.repeats,
            "seed": settings.train.seed,
            "max_replay": settings.train.max_replay,
            "versions": versions_in_use() | {"sqlite": sqlite3.sqlite_version},
            "machine": machine_in_use() | {"load_at_end": [round(x, 1) for x in os.getloadavg()]},
        }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
