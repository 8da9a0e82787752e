"""Commands that only look: status, history, explain, why, quarantine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from daemon.cli.session import print_json, show, tell
from daemon.cli.tables import (
    history_view,
    quarantine_view,
    retraction_view,
    status_view,
    why_view,
)
from daemon.intake.admit import rules_of
from daemon.intake.reader import record
from daemon.ledger.ledger import Ledger
from daemon.views import explain, status
from daemon.views.answers import answers
from policies.errors import DaemonUnreachable, NotFound
from policies.facts.admission import quarantined
from policies.records import Batch, Quarantined

if TYPE_CHECKING:
    from daemon.config.settings import Settings

QUARANTINE_SHOWN: Final = 1000


@contextmanager
def reading(settings: Settings) -> Iterator[Ledger]:
    """The ledger, read-only; one clear line where nothing has run yet."""
    path = settings.layout.ledger
    if not path.exists():
        raise NotFound(f"there is no ledger at {path} yet; start with 'palorad run'")
    with Ledger.open(path, readonly=True) as ledger:
        yield ledger


def daemon_of(settings: Settings) -> status.DaemonView | None:
    """What only the running daemon knows; None where none runs."""
    try:
        return status.DaemonView.model_validate(tell(settings, "status"))
    except DaemonUnreachable:
        return None


def show_status(settings: Settings, as_json: bool) -> None:
    """`palorad status`."""
    with reading(settings) as ledger:
        view = status.status(ledger, daemon_of(settings), datetime.now(UTC))
    show(view, status_view, as_json)


def show_history(settings: Settings, limit: int, as_json: bool) -> None:
    """`palorad history`."""
    with reading(settings) as ledger:
        view = status.history(ledger, limit)
    show(view, history_view, as_json)


def show_explain(settings: Settings, batch: str, as_json: bool) -> None:
    """`palorad explain BATCH`."""
    with reading(settings) as ledger:
        view = status.explain(ledger, batch)
    show(view, explain.render, as_json)


def show_certificate(settings: Settings, name: str, as_json: bool) -> None:
    """`palorad certificate NAME`."""
    with reading(settings) as ledger:
        view = status.retraction(ledger, ledger.retractions.get(name))
    show(view, retraction_view, as_json)


def show_why(settings: Settings, prompt: str, as_json: bool) -> None:
    """`palorad why PROMPT`: what the ledger knows, and what the server says where it answers."""
    with reading(settings) as ledger:
        target = ledger.revisions.target()
        previous = None if target.parent is None else ledger.revisions.get(target.parent)
        said = asyncio.run(answers(settings, prompt, previous))
        view = status.why(ledger, prompt, said)
    show(view, why_view, as_json)


def show_quarantine(settings: Settings, batch: str | None, as_json: bool) -> None:
    """`palorad quarantine [BATCH]`."""
    with reading(settings) as ledger:
        batches = ledger.batches.latest() if batch is None else (ledger.batches.get(batch),)
        lines = [
            (found.name, line)
            for found in batches
            if found.quarantined
            for line in ledger.quarantine.lines(found.id, QUARANTINE_SHOWN)
        ]
        further = {
            found.name: kinds
            for found in batches
            if found.quarantined and (kinds := ledger.quarantine.numbered(found.id))
        }
    if as_json:
        told: list[dict[str, object]] = [{"file": n, **bad.model_dump()} for n, bad in lines]
        print_json(told + [{"file": n, "further_lines": kinds} for n, kinds in further.items()])
    else:
        show((lines, further), lambda both: quarantine_view(*both), as_json=False)


def quarantined_line(settings: Settings, batch: str, line: int) -> tuple[Batch, Quarantined]:
    """A batch and one of its lines in quarantine; raises `NotFound`, or `OSError` of the archive.

    What the ledger knows by its number only is read again in the archive.
    """
    with reading(settings) as ledger:
        found = ledger.batches.get(batch)
        kind = ledger.quarantine.kind(found.id, line)
        kept = ledger.quarantine.lines(found.id, 1, first=line) if kind else ()
    if kind is None:
        raise NotFound(f"{found.name} has no line {line} in quarantine")
    if kept and kept[0].line == line:
        return found, kept[0]
    archived = settings.layout.archived(found.id)
    said = record(archived, line, rules_of(settings.intake).limits)
    reason = f"is quarantined as {kind}; the ledger keeps its number only, the archive its text"
    return found, quarantined(said, line, kind, reason)
