"""The whole verification, and the quick one of every start."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.ledger.ledger import Ledger
from daemon.ledger.private_copy import private_copy
from daemon.serving.client import HttpServer
from daemon.verification import answers, facts, files, history
from daemon.verification.confirming import Confirmed
from daemon.verification.findings import Inspection, Report
from policies.errors import LedgerUnusable

if TYPE_CHECKING:
    from daemon.config.settings import Settings
    from daemon.verification.anchor import Head

    Anchored = tuple[Head | None, str]


def verify(
    settings: Settings,
    *,
    quick: bool = False,
    running: bool = False,
    kept: Path | None = None,
    stop: threading.Event | None = None,
    servers: Callable[[Settings], Sequence[HttpServer]] = answers.clients,
) -> Report:
    """Compare everything durable, and what servers answer, with what was written.

    `quick`: SQLite's quick check, the head of the history, the target and its files. `running`: a
    daemon works on it meanwhile. `kept` is a file of signed heads that came from elsewhere. Takes
    as long as reading everything does: call it in a thread; raises `Interrupted` once `stop` is
    set, and nothing else.
    """
    inspection, layout = Inspection(stop), settings.layout
    with inspection.part(str(layout.ledger)):
        if not layout.ledger.exists():
            raise LedgerUnusable("there is no ledger yet; start the daemon once")
        anchored: Anchored = (None, "")
        with inspection.part(str(layout.anchor)):
            anchored = history.read_anchor(layout)
        with private_copy(layout.ledger, alone=not running) as db:
            ledger = Ledger(db)
            confirmed = Confirmed(ledger, layout.ledger, running=running)
            _check_ledger(settings, ledger, anchored, inspection, quick=quick, kept=kept)
            _check_files(settings, confirmed, inspection, quick=quick)
            if not quick:
                with inspection.part("servers"):
                    known = _names(ledger)
                    asyncio.run(
                        answers.check_servers(settings, servers(settings), known, inspection)
                    )
    return inspection.report()


def _check_ledger(
    settings: Settings,
    ledger: Ledger,
    anchored: Anchored,
    inspection: Inspection,
    *,
    quick: bool,
    kept: Path | None,
) -> None:
    layout, path = settings.layout, settings.layout.ledger
    with inspection.part(str(path)):
        history.check_pages(ledger, path, inspection, quick=quick)
    with inspection.part("history"):
        history.check_chain(ledger, layout, anchored, inspection, quick=quick)
    for outside in (settings.anchor.file, kept):
        if outside is not None and not quick:
            with inspection.part(str(outside)):
                history.check_outside(ledger, layout, outside, inspection)
    with inspection.part("target"):
        history.check_target(ledger, path, inspection)
    if not quick:
        with inspection.part("plans"):
            history.check_plans(ledger, path, inspection)
        with inspection.part("facts"):
            facts.check_facts(ledger, path, inspection)


def _check_files(
    settings: Settings, confirmed: Confirmed, inspection: Inspection, *, quick: bool
) -> None:
    layout, model = settings.layout, settings.model
    with inspection.part(str(layout.alias)):
        files.check_alias(layout, model.alias, model.name, confirmed, inspection)
    if quick:
        with inspection.part(str(layout.served)):
            target = confirmed.ledger.revisions.target()
            if target.number:
                files.check_revision(layout, target, confirmed, inspection)
        return
    with inspection.part(str(layout.served)):
        files.check_store(layout, confirmed, inspection)
    with inspection.part(str(layout.archive)):
        facts.check_archives(layout, confirmed, inspection)


def _names(ledger: Ledger) -> set[str]:
    """Everything that a server may have loaded: revisions, and candidates of plans."""
    names = {revision.served_name for revision in ledger.revisions.all()}
    return names | {head.served.name for head in ledger.plans.heads() if head.served is not None}
