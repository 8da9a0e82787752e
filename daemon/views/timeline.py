"""What happened, in sentences, and what was live at any moment."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Event
from policies.records import Record

PIECE: Final = 50
# What matters to whoever looks back; all else is shown on request.
TOLD: Final = (
    *("target", "plan.live", "plan.rejected", "plan.inconclusive", "plan.failed", "plan.passed"),
    *("plan.rolled-back", "batch.admitted", "batch.set_aside", "batch.retried", "plan.made"),
    *("batch.readmitted", "line.corrected", "fact.retracted", "fact.certified", "work.paused"),
    *("work.resumed", "feed.opened", "feed.closed", "history.accepted"),
)
_GOOD: Final = frozenset({"plan.live", "plan.passed", "fact.certified", "feed.closed"})
_BAD: Final = frozenset({"plan.rejected", "plan.failed", "stage.failed", "batch.set_aside"})
_UNSURE: Final = frozenset({"plan.inconclusive", "work.paused", "feed.opened", "fact.retracted"})


class TimelineEntry(Record):
    """One event: what happened in a sentence, because of what, and what it is about."""

    seq: int
    at: datetime
    kind: str
    what: str
    because: str = ""
    tone: str = ""
    plan: int | None = None
    revision: int | None = None
    batch: str | None = None


class TimelineView(Record):
    """`/api/timeline`: the newest first; `before` asks for the piece that follows."""

    entries: tuple[TimelineEntry, ...]
    before: int | None = None


class LiveAt(Record):
    """`/api/live-at`: the target at a moment. `served_at` is when the replicas first answered from
    it, where that is known; `until` when another became the target."""

    moment: datetime
    revision: int | None
    name: str = ""
    plan: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    served_at: datetime | None = None
    because: str = ""


def timeline(
    ledger: Ledger, before: int | None = None, *, everything: bool = False
) -> TimelineView:
    """A piece of history, of what matters or of everything."""
    events = ledger.listings.events(() if everything else TOLD, before, PIECE + 1)
    shown = events[:PIECE]
    return TimelineView(
        entries=tuple(map(entry, shown)),
        before=shown[-1].seq if len(events) > PIECE else None,
    )


def live_at(ledger: Ledger, moment: datetime) -> LiveAt:
    """What was the target at a moment; no revision before the first start."""
    found = ledger.listings.next_event("target", moment, after=False)
    until = ledger.listings.next_event("target", moment, after=True)
    ends = None if until is None else until.at
    if found is None:
        base = ledger.revisions.get(0)
        if moment < base.created_at:
            return LiveAt(moment=moment, revision=None, until=base.created_at)
        return LiveAt(
            moment=moment, revision=0, name=base.served_name, since=base.created_at, until=ends
        )
    number = int(found.subject.partition(":")[2])
    revision = ledger.revisions.get(number)
    served = ledger.listings.next_event("served", found.at, after=True)
    counts = served is not None and served.subject == found.subject
    return LiveAt(
        moment=moment,
        revision=number,
        name=revision.served_name,
        plan=revision.plan_id,
        since=found.at,
        until=ends,
        served_at=served.at if served is not None and counts else None,
        because=str(found.payload.get("because", "")),
    )


def entry(event: Event) -> TimelineEntry:
    """An event in words."""
    said, about = event.payload, event.subject
    kind, _, name = about.partition(":")
    number = int(name) if name.isdigit() else None
    tone = "good" if event.kind in _GOOD else "bad" if event.kind in _BAD else ""
    return TimelineEntry(
        seq=event.seq,
        at=event.at,
        kind=event.kind,
        what=_sentence(event.kind, about, said),
        because=_because(said),
        tone="unsure" if event.kind in _UNSURE or _by_hand(event) else tone,
        plan=number if kind == "plan" else None,
        revision=number if kind == "revision" else said.get("revision"),
        batch=about if event.kind.startswith(("batch.", "line.")) else None,
    )


def _by_hand(event: Event) -> bool:
    """Whether a person moved the target: a rollback, or its undoing."""
    because = str(event.payload.get("because", ""))
    return event.kind == "target" and not (because.startswith("plan ") and "passed" in because)


def _because(said: Mapping[str, Any]) -> str:
    return str(said.get("because") or said.get("error") or said.get("problem") or "")


def _count(said: Mapping[str, Any], name: str, noun: str) -> str:
    count = said.get(name)
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _sentence(kind: str, about: str, said: Mapping[str, Any]) -> str:
    if said.get("erased") is True:
        return f"{kind}: what it said was erased with a retracted fact"
    plan = about.replace("plan:", "plan ")
    made = f"{plan} was made: {_count(said, 'facts', 'fact')} to learn"
    made += f", {said['replays']} to replay" if said.get("replays") else ""
    came = [f"a batch came: {_count(said, 'accepted', 'fact')}"]
    came += [f"{said['known']} known before"] if said.get("known") else []
    came += [f"{_count(said, 'quarantined', 'line')} in quarantine"] * bool(said.get("quarantined"))
    sentences = {
        "target": f"{about.replace(':', ' ')} became the target",
        "plan.made": made,
        "plan.live": f"{plan} went live as revision {said.get('revision')}",
        "plan.rejected": f"{plan} was rejected",
        "plan.inconclusive": f"{plan} is inconclusive: a person decides",
        "plan.passed": f"{plan} passed the gate",
        "batch.admitted": ", ".join(came),
        "batch.set_aside": "a batch was set aside",
        "batch.retried": f"{_count(said, 'facts', 'fact')} of a batch planned again",
        "batch.readmitted": f"{_count(said, 'lines', 'line')} read again,"
        f" {said.get('still_bad')} still bad",
        "line.corrected": f"line {said.get('line')} was corrected and submitted again",
        "fact.retracted": "a fact was retracted",
        "fact.certified": "a retracted fact was certified as unlearned and erased",
        "work.paused": "paused",
        "work.resumed": "resumed",
        "feed.opened": f"feed {about} fails again and again; it is asked less often",
        "feed.closed": f"feed {about} answers again",
        "history.accepted": "a person accepted the history as it is",
        "stage.started": f"{plan}: {said.get('stage')} began",
        "stage.failed": f"{plan}: {said.get('stage')} failed",
        "served": f"replicas answer from {about.replace(':', ' ')}",
    }
    if kind in sentences:
        return sentences[kind]
    if kind.startswith("plan."):
        return f"{plan} is {kind.removeprefix('plan.')}"
    return f"{kind} {about}"
