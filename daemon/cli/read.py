"""Commands that only look: status, history, explain, why, quarantine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from daemon.cli.exit_codes import NO_DAEMON, PASS, REGRESSION
from daemon.cli.session import print_json, show, tell
from daemon.cli.tables import (
    history_view,
    quarantine_view,
    retraction_view,
    status_view,
)
from daemon.cli.why import why_sentences
from daemon.intake.admit import rules_of
from daemon.intake.reader import record
from daemon.ledger.ledger import Ledger
from daemon.serving.client import HttpServer, Timeouts
from daemon.serving.protocol import Completion
from daemon.views import explain, status
from policies.errors import DaemonUnreachable, NotFound, ServerRefused, ServerUnreachable
from policies.facts.admission import quarantined
from policies.records import Batch, Quarantined, Revision

if TYPE_CHECKING:
    from daemon.config.settings import Settings

ANSWER_TOKENS: Final = 48
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


def show_status(settings: Settings, as_json: bool) -> int:
    """`palorad status`; the exit code."""
    daemon = daemon_of(settings)
    if daemon is None and not settings.layout.ledger.exists():
        raise DaemonUnreachable(
            f"nothing has run in {settings.state_dir}; start with `palorad run`"
        )
    with reading(settings) as ledger:
        view = status.status(ledger, daemon, datetime.now(UTC))
    show(view, status_view, as_json)
    if daemon is None:
        return NO_DAEMON
    return REGRESSION if daemon.troubles else PASS


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
        answers = asyncio.run(_answers(settings, prompt, previous))
        view = status.why(ledger, prompt, answers)
    show(view, why_sentences, as_json)


async def _answers(
    settings: Settings, prompt: str, previous: Revision | None
) -> tuple[status.AnswerView, ...]:
    key = settings.server.user_key_file
    server = HttpServer(
        settings.server.urls[0],
        user_key=key.read_text().strip() if key else None,
        timeouts=Timeouts(request_s=settings.server.request_timeout_s),
    )
    asked = {"base": settings.model.name, "live": settings.model.alias}
    if previous is not None and previous.number > 0:
        asked = {"base": asked["base"], "previous": previous.served_name, "live": asked["live"]}
    answers = []
    try:
        for who, model in asked.items():
            try:
                answer = await _answer(server, model, prompt)
            except ServerRefused as refused:
                answers.append(
                    status.AnswerView(who=who, model=model, answer=f"(refused: {refused})")
                )
            else:
                by = answer.headers.get("x-palorad-model", answer.model)
                answers.append(status.AnswerView(who=who, model=by, answer=answer.text.strip()))
    except ServerUnreachable:
        return ()
    finally:
        await server.aclose()
    return tuple(answers)


async def _answer(server: HttpServer, model: str, prompt: str) -> Completion:
    """As a chat message, or as plain text where the model has no chat template."""
    try:
        return await server.chat(model, prompt, max_tokens=ANSWER_TOKENS)
    except ServerRefused as refused:
        if refused.status != 400:
            raise
    (answer,) = await server.complete(model, (prompt,), max_tokens=ANSWER_TOKENS)
    return answer


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
