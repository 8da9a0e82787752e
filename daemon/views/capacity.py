"""How much room there is: rank, facts, the next run, the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from adapters.schedule import steps_needed
from daemon.config.layout import Layout
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from policies.records import PlanState, Record

RUNS: Final = 8


class PastRun(Record):
    """How long the stages of a judged plan took."""

    plan: int
    facts: int
    steps: int
    train_s: float | None
    evaluate_s: float | None


class NextRun(Record):
    """What the next plan would be of the facts that wait now: its seconds as the last runs went,
    None where there was none."""

    facts: int
    replayed: int
    steps: int
    train_s: float | None = None
    evaluate_s: float | None = None


class DiskUse(Record):
    """What takes the disk, in bytes."""

    what: str
    bytes: int


class CapacityView(Record):
    """`/api/capacity`."""

    rank: int
    rank_budget: int
    adapters: int
    facts: int
    learnt: int
    waiting: int
    not_learnt: int
    next_run: NextRun | None
    runs: tuple[PastRun, ...]
    stored: tuple[DiskUse, ...]
    disk_free: int
    disk_total: int


def capacity_view(ledger: Ledger, settings: Settings, stored: tuple[DiskUse, ...]) -> CapacityView:
    """As it is now; `stored` is what `stored_in` has found."""
    target, totals = ledger.revisions.target(), ledger.batches.totals()
    runs = tuple(_runs(ledger, settings))
    waiting, _ = ledger.listings.waiting()
    learnt = ledger.listings.learnt()
    disk = shutil.disk_usage(settings.state_dir)
    return CapacityView(
        rank=ledger.revisions.lineage_rank(target.lineage),
        rank_budget=settings.train.rank_budget,
        adapters=len(target.lineage),
        facts=totals["accepted"] - totals["known"],
        learnt=learnt,
        waiting=waiting,
        not_learnt=ledger.facts.unlearnt_count(),
        next_run=_next_run(settings, waiting, learnt, runs) if waiting else None,
        runs=runs,
        stored=stored,
        disk_free=disk.free,
        disk_total=disk.total,
    )


def _next_run(settings: Settings, waiting: int, learnt: int, runs: tuple[PastRun, ...]) -> NextRun:
    train = settings.train
    facts = min(waiting, train.max_facts)
    replayed = min(learnt, train.max_replay) if train.lineage == "warm-start" else 0
    steps = steps_needed(train.config, facts, replayed)
    pace = [run.train_s / run.steps for run in runs if run.train_s is not None and run.steps]
    judged = [run.evaluate_s for run in runs if run.evaluate_s is not None]
    return NextRun(
        facts=facts,
        replayed=replayed,
        steps=steps,
        train_s=steps * sum(pace) / len(pace) if pace else None,
        evaluate_s=sum(judged) / len(judged) if judged else None,
    )


def _runs(ledger: Ledger, settings: Settings) -> Iterator[PastRun]:
    decided = {PlanState.LIVE, PlanState.REJECTED, PlanState.INCONCLUSIVE, PlanState.ROLLED_BACK}
    heads = ledger.plans.heads(decided, limit=RUNS)
    events = ledger.listings.events_of_plans([head.id for head in heads])
    for head in heads:
        began: dict[str, datetime] = {}
        ended: dict[str, datetime] = {}
        for event in events[head.id]:
            if event.kind == "stage.started":
                began[str(event.payload.get("stage"))] = event.at
            elif event.kind == "plan.trained":
                ended["train"] = event.at
            elif event.kind in ("plan.passed", "plan.rejected", "plan.inconclusive"):
                ended.setdefault("evaluate", event.at)
        took = {
            stage: (ended[stage] - began[stage]).total_seconds()
            for stage in began.keys() & ended.keys()
        }
        yield PastRun(
            plan=head.id,
            facts=head.facts,
            steps=steps_needed(settings.train.config, head.facts, head.replays),
            train_s=took.get("train"),
            evaluate_s=took.get("evaluate"),
        )


def stored_in(layout: Layout) -> tuple[DiskUse, ...]:
    """What the state directory's parts take; looks at each file, of which there may be many."""
    return tuple(_stored(layout))


def _stored(layout: Layout) -> Iterator[DiskUse]:
    yield DiskUse(what="ledger", bytes=layout.ledger.stat().st_size)
    folders = (
        layout.adapters,
        layout.served,
        layout.archive,
        layout.probes,
        layout.answers,
        layout.work,
        layout.records,
    )
    for folder in folders:
        if folder.is_dir():
            yield DiskUse(what=folder.name, bytes=_size(folder))


def _size(folder: Path) -> int:
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += _size(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return total
    return total
