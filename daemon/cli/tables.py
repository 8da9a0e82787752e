"""Views as tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from daemon.children.jobs import Progress
from daemon.ledger.records import Event
from daemon.views.status import (
    BatchView,
    DaemonView,
    HistoryView,
    RetractionView,
    RevisionView,
    StageView,
    StatusView,
)
from policies.records import BatchState, Quarantined
from policies.text import counted

ID: Final = 12
_RETRACTIONS: Final = {
    "still served": "STILL SERVED until a revision without it is active",
    "still loaded": "not in the target revision, but still loaded on a replica",
    "being erased": "no longer served; its text is being erased",
}
_COLOURS: Final = {
    BatchState.LIVE: "green",
    BatchState.REJECTED: "red",
    BatchState.FAILED: "red",
    BatchState.INCONCLUSIVE: "yellow",
}


def status_view(view: StatusView) -> RenderableType:
    """Who runs, what is served, what is under way, the latest batches."""
    parts: list[RenderableType] = [*_head(view), *(Text(_stage(stage)) for stage in view.stages)]
    if view.daemon is not None and view.daemon.replicas:
        parts.append(_replicas(view.daemon))
    if view.batches:
        parts.append(_batches(view.batches))
    else:
        parts.append(Text("no batches yet: drop a file of facts into the inbox"))
    return Group(*parts)


def _head(view: StatusView) -> list[RenderableType]:
    if view.daemon is None:
        running = Text("the daemon does not run; start it with 'palorad run'", style="yellow")
    else:
        running = Text(f"running (pid {view.daemon.pid}), {view.daemon.server} server")
    lines: list[RenderableType] = [running]
    if view.paused:
        lines.append(
            Text("paused: nothing is trained or goes live until 'palorad resume'", style="yellow")
        )
    lines.append(
        Text(
            f"target: revision {view.target.number}, {view.target.name}, "
            f"{counted(view.target.adapters, 'adapter')}, rank {view.target.rank}"
        )
    )
    facts = counted(view.facts, "fact")
    if view.not_learnt:
        facts += f", {view.not_learnt} of them not learnt"
    if view.quarantined:
        facts += f"; {counted(view.quarantined, 'line')} in quarantine"
    lines.append(Text(facts))
    lines += [Text(line, style="yellow") for line in _retractions(view)]
    lines += [
        Text(f"suite {s.suite}: blind: {s.blind}", style="yellow") for s in view.suites if s.blind
    ]
    chosen = [f"{s.suite} by {s.grader!r}" for s in view.suites if s.grader_because]
    if chosen:
        lines.append(Text(f"graders that fit the base's answers: {', '.join(chosen)}"))
    if view.daemon is not None:
        waits = (*filter(None, (view.daemon.blocked,)), *view.daemon.waits)
        lines += [Text(line) for line in waits]
        lines += [Text(line, style="yellow") for line in view.daemon.trouble]
    return lines


def _retractions(view: StatusView) -> list[str]:
    """One line for each state, so that many retractions stay readable."""
    lines = []
    for state, words in _RETRACTIONS.items():
        found = [r for r in view.retractions if r.state == state]
        if found:
            plan = next((f", by plan {r.plan}" for r in found if r.plan is not None), "")
            count = (
                "1 retracted fact is" if len(found) == 1 else f"{len(found)} retracted facts are"
            )
            lines.append(f"{count} {words}{plan} (palorad certificate {found[0].handle})")
    return lines


def retraction_view(view: RetractionView) -> RenderableType:
    """Where a retraction stands, or its certificate."""
    stands = _RETRACTIONS.get(view.state, "certified as unlearned and erased")
    head = Text(f"{view.handle}: the fact is {stands}; asked for {clock(view.asked_at)}")
    if view.certificate is None:
        return head
    return Group(head, Text(json.dumps(view.certificate, indent=2, ensure_ascii=False)))


def _stage(stage: StageView) -> str:
    text = f"plan {stage.plan} ({stage.kind}): {stage.stage} since {clock(stage.started_at)}"
    return f"{text}, {progress_text(stage.progress)}" if stage.progress else text


def progress_text(progress: Progress) -> str:
    """How far a child is, in words."""
    text = progress.stage or "at work"
    if progress.total:
        text += f" {progress.done} of {progress.total}"
    if progress.loss is not None:
        text += f", loss {progress.loss:.3f}"
    if progress.seconds_left is not None:
        text += f", {time_left(progress.seconds_left)}"
    return text


def time_left(seconds: float) -> str:
    """An estimate in words, no finer than it is good."""
    if seconds < 90:
        return f"about {seconds:.0f} s left"
    minutes = seconds / 60
    return f"about {minutes:.0f} min left" if minutes < 90 else f"about {minutes / 60:.1f} h left"


def _replicas(daemon: DaemonView) -> RenderableType:
    table = Table("replica", "ready", "target", "active", "verified")
    for r in daemon.replicas:
        table.add_row(
            r.url,
            Text("yes", style="green") if r.ready else Text("no", style="red"),
            r.target,
            r.active or "–",
            clock(r.verified_at) if r.verified_at else "–",
        )
    reasons = (
        r.reason if r.reason.startswith(r.url) else f"{r.url}: {r.reason}"
        for r in daemon.replicas
        if r.reason
    )
    return Group(table, *map(Text, reasons))


def _batches(batches: Sequence[BatchView]) -> Table:
    table = Table("batch", "file", "state", "facts", "not learnt", "quarantined", "received")
    for b in batches:
        table.add_row(
            b.id[:ID],
            Text(b.name),
            Text(_standing(b), style=_COLOURS.get(b.state, "")),
            str(b.accepted),
            str(b.facts.unlearnt or ""),
            str(b.quarantined or ""),
            clock(b.received_at),
        )
    return table


def _standing(b: BatchView) -> str:
    return f"{b.state} until {clock(b.not_before)}" if b.not_before else str(b.state)


def history_view(view: HistoryView) -> RenderableType:
    """Revisions, then events, the newest last."""
    revisions = Table("revision", "name", "made by", "on", "adapters", "rank", "made", "")
    for r in sorted(view.revisions, key=lambda revision: revision.number):
        revisions.add_row(*_revision(r))
    events = Table("event", "when", "what", "of", "with")
    for e in sorted(view.events, key=lambda event: event.seq):
        events.add_row(str(e.seq), clock(e.at), e.kind, e.subject[:40], Text(_payload(e)))
    return Group(revisions, events)


def _revision(r: RevisionView) -> tuple[str, ...]:
    return (
        str(r.number),
        r.name,
        f"plan {r.plan} ({r.kind})" if r.plan is not None else "",
        "" if r.parent is None else str(r.parent),
        str(r.adapters),
        str(r.rank),
        clock(r.created_at),
        "target" if r.target else "",
    )


def _payload(event: Event) -> str:
    return ", ".join(f"{k} {v}" for k, v in event.payload.items() if v not in ("", None, [], {}))


def quarantine_view(
    lines: Sequence[tuple[str, Quarantined]], further: Mapping[str, Mapping[str, int]]
) -> RenderableType:
    """Lines that were not admitted, by file; of `further` ones how many of each kind."""
    if not lines and not further:
        return Text("nothing in quarantine")
    table = Table("file", "line", "kind", "why", "text")
    for name, bad in lines:
        table.add_row(Text(name), str(bad.line), bad.kind, Text(bad.reason), Text(bad.text[:60]))
    more = [
        Text(f"{name}: {sum(kinds.values())} further lines ({_counted(kinds)}), without their text")
        for name, kinds in further.items()
    ]
    return Group(table, *more)


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))


def clock(moment: datetime) -> str:
    """A moment in local time, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
