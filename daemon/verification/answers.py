"""What servers answer: the base and every listed revision must be those that were published."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from daemon.serving import identity
from daemon.serving.alias import PINNED
from daemon.serving.client import HttpServer, Timeouts
from daemon.serving.identity import Identity
from daemon.serving.protocol import Completion
from daemon.serving.replicas import tolerance
from daemon.verification.findings import Inspection
from policies.errors import PaloradError, ServerRefused, ServerUnreachable

if TYPE_CHECKING:
    from daemon.config.settings import Settings

_RESTART = "find out who loaded it; restart that server: palorad loads and verifies again"
_BASE = "start the server with the model of model.path, at the same dtype"


async def check_servers(
    settings: Settings,
    servers: Sequence[HttpServer],
    known: Collection[str],
    inspection: Inspection,
) -> None:
    """Ask every server; `known` are the names that may be loaded."""
    for server in servers:
        try:
            await _check(settings, server, known, inspection)
        except ServerUnreachable as error:
            inspection.skip(f"{error}; what it answers was not verified")
        except ServerRefused as refused:
            line = f"{refused}; what it answers was not verified"
            (inspection.skip if refused.status == 503 else inspection.unchecked)(line)
        finally:
            await server.aclose()


def clients(settings: Settings) -> tuple[HttpServer, ...]:
    """The servers of the settings as any user may ask them: without the key of palorad's own."""
    file = settings.server.user_key_file
    key = file.read_text().strip() if file is not None else None
    timeouts = Timeouts(request_s=settings.server.request_timeout_s)
    return tuple(HttpServer(url, user_key=key, timeouts=timeouts) for url in settings.server.urls)


async def _check(
    settings: Settings, server: HttpServer, known: Collection[str], inspection: Inspection
) -> None:
    listed = sorted(name for name in await server.loaded() if PINNED.match(name))
    base: Identity | None = None
    for name in listed:
        inspection.pause()
        if name not in known:
            what = f"{name} is loaded, which the ledger does not know"
            inspection.found("server", server.url, what, _RESTART)
            continue
        try:
            stored = identity.read(settings.layout.served / name)
            answers = await _ask(server, name, stored)
        except ServerRefused as refused:
            if refused.status == 404 and name not in await server.loaded():
                continue  # retired meanwhile
            raise
        except PaloradError as error:
            inspection.unchecked(f"{server.url}: {name}: {error}")
            continue
        if reason := identity.mismatch(stored, answers, tolerance()):
            what = f"{name} does not answer as it was published: {reason}"
            inspection.found("server", server.url, what, _RESTART)
        base = stored
        inspection.count("revisions asked")
    if base is None:
        inspection.skip(f"{server.url}: no revision is loaded, so nothing tells its base by")
        return
    answers = await _ask(server, settings.model.name, base)
    if reason := identity.base_mismatch(base, answers, tolerance()):
        what = f"the base {settings.model.name} is not the one that was trained on: {reason}"
        inspection.found("server", server.url, what, _BASE)
    inspection.count("bases asked")


async def _ask(server: HttpServer, model: str, stored: Identity) -> tuple[Completion, ...]:
    return await server.complete(
        model, stored.prompts, max_tokens=stored.max_tokens, ignore_eos=True
    )
