"""Commands that only look: status, history, explain, why, quarantine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from daemon.cli.exit_codes import NO_DAEMON, PASS, REGRESSION
from daemon.cli.session import print_json, show
from daemon.cli.tables import history_view, quarantine_view, retraction_view, status_view
from daemon.cli.why import why_sentences
from daemon.client import Client
from daemon.intake.admit import rules_of
from daemon.intake.reader import record
from daemon.views import explain
from policies.errors import NotFound
from policies.facts.admission import quarantined
from policies.records import Batch, Quarantined

if TYPE_CHECKING:
    from daemon.config.settings import Settings

QUARANTINE_SHOWN: Final = 1000


def show_status(settings: Settings, as_json: bool) -> int:
    """`palorad status`; the exit code."""
    view = Client(settings).status()
    show(view, status_view, as_json)
    if view.daemon is None:
        return NO_DAEMON
    return REGRESSION if view.daemon.troubles else PASS


def show_history(settings: Settings, limit: int, as_json: bool) -> None:
    """`palorad history`."""
    show(Client(settings).history(limit), history_view, as_json)


def show_explain(settings: Settings, batch: str, as_json: bool) -> None:
    """`palorad explain BATCH`."""
    show(Client(settings).explain(batch), explain.render, as_json)


def show_certificate(settings: Settings, name: str, as_json: bool) -> None:
    """`palorad certificate NAME`."""
    show(Client(settings).certificate(name), retraction_view, as_json)


def show_why(settings: Settings, prompt: str, as_json: bool) -> None:
    """`palorad why PROMPT`: what the ledger knows, and what the server says where it answers."""
    show(Client(settings).why(prompt), why_sentences, as_json)


def show_quarantine(settings: Settings, batch: str | None, as_json: bool) -> None:
    """`palorad quarantine [BATCH]`."""
    with Client(settings).reading() as ledger:
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
    with Client(settings).reading() as ledger:
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
