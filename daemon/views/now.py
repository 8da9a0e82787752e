"""The page's first view: what answers, what is under way, what comes next and why it waits."""

from __future__ import annotations

from datetime import datetime

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import PlanHead
from daemon.views.status import DaemonView, StatusView, status
from policies.records import PlanState, Record
from policies.text import counted


class Undecided(Record):
    """A plan that waits for a person, and what the gate said of it."""

    plan: int
    because: str


class NowView(Record):
    """`/api/now`: the status, and what it means for whoever looks.

    `next` says in a sentence what comes next, or why it waits.
    """

    status: StatusView
    since: datetime | None
    because: str
    waiting: int
    waiting_since: datetime | None
    next: str
    undecided: tuple[Undecided, ...] = ()
    trouble: tuple[str, ...] = ()


def now_view(ledger: Ledger, daemon: DaemonView | None, now: datetime) -> NowView:
    """Everything about this moment; `daemon` is what only the running daemon knows."""
    shown = status(ledger, daemon, now)
    since, because = ledger.listings.target_moved()
    waiting, waiting_since = ledger.listings.waiting()
    return NowView(
        status=shown,
        since=since,
        because=because,
        waiting=waiting,
        waiting_since=waiting_since,
        next=_next(shown, waiting, ledger.plans.open_plan(), now),
        undecided=tuple(
            Undecided(plan=plan, because=ledger.plans.head(plan).because)
            for plan in ledger.listings.undecided()
        ),
        trouble=_trouble(shown),
    )


def _trouble(shown: StatusView) -> tuple[str, ...]:
    blind = tuple(f"suite {s.suite} is blind: {s.blind}" for s in shown.suites if s.blind)
    served = sum(r.state == "still served" for r in shown.retractions)
    retracted = (f"{counted(served, 'retracted fact')} still served",) if served else ()
    if shown.daemon is None:
        return ("the daemon's loop does not answer; look at its log", *retracted, *blind)
    away = tuple(
        r.reason if r.reason.startswith(r.url) else f"{r.url}: {r.reason}"
        for r in shown.daemon.replicas
        if r.reason and not r.ready
    )
    return (*shown.daemon.trouble, *away, *retracted, *blind)


def _next(shown: StatusView, waiting: int, opened: PlanHead | None, now: datetime) -> str:
    if shown.paused:
        return "Paused: nothing is trained or goes live until it is resumed."
    if opened is not None:
        return _of_plan(shown, opened, now)
    if shown.daemon is not None and shown.daemon.blocked:
        return f"{_waiting(waiting)}: {shown.daemon.blocked}."
    if waiting:
        dated = next((b.not_before for b in reversed(shown.batches) if b.not_before), None)
        if dated is not None:
            return f"{_waiting(waiting)}; the next becomes valid at {dated:%Y-%m-%d %H:%M} UTC."
        return f"{_waiting(waiting)}; a plan is made at the next tick."
    return "Nothing waits. Drop a file of facts, or paste some."


def _waiting(count: int) -> str:
    return "1 fact waits" if count == 1 else f"{count} facts wait"


def _of_plan(shown: StatusView, plan: PlanHead, now: datetime) -> str:
    if plan.not_before is not None and plan.not_before > now:
        seconds = (plan.not_before - now).total_seconds()
        why = f" after: {plan.error}" if plan.error else ""
        return f"Plan {plan.id} rests for {seconds:.0f} s{why}."
    if any(stage.plan == plan.id for stage in shown.stages):
        after = {"planned": "the gate judges it", "trained": "it goes live if the gate passes it"}
        return f"Then {after.get(plan.state.value, 'it goes live')}."
    if plan.state is PlanState.CANARY:
        return f"Plan {plan.id} answers a share of the requests; it goes live if it does no harm."
    begins = {"planned": "is trained", "trained": "is judged by the gate", "passed": "goes live"}
    return f"Plan {plan.id} {begins.get(plan.state.value, 'goes on')} next."
