"""From settings to a running service; what passes by itself is waited for, within bounds."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final, TypeVar

import structlog

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop.instance import alone
from daemon.loop.logs import configure_log
from daemon.loop.preflight import FULL, prepare_state, require_files, require_own_modules
from daemon.loop.service import Service
from daemon.loop.systemd import notify
from daemon.serving.gpu import require_places
from daemon.serving.servers import Servers
from daemon.web.page import Page
from policies.backoff import pause_s
from policies.errors import DiskFull, LedgerBusy

# Less than the unit's TimeoutStartSec; afterwards systemd tries again from the beginning.
PATIENCE_S: Final = 40.0
FIRST_WAIT_S: Final = 0.25
LONGEST_WAIT_S: Final = 5.0

_Made = TypeVar("_Made")
log = structlog.get_logger(__name__)


def run(settings: Settings, reload: Callable[[], Settings] | None = None) -> int:
    """Be the daemon until SIGTERM or SIGINT; 0 then. Raises `PaloradError` where it cannot start.

    `reload` reads the settings again at SIGHUP. A full disk and a ledger that another process has
    locked are waited for; `DiskFull` or `LedgerBusy` where that takes too long.
    """
    require_own_modules()
    require_files(settings)
    if settings.train.launcher == "local":
        require_places(settings.train.processes, os.environ)
    configure_log(settings.daemon.log_level)
    until = time.monotonic() + PATIENCE_S
    patiently(lambda: prepare_state(settings), until)
    with ExitStack() as held:
        patiently(lambda: held.enter_context(alone(settings.layout)), until)
        ledger = held.enter_context(patiently(lambda: _opened(settings), until))
        asyncio.run(_run(settings, ledger, reload))
    return 0


def _opened(settings: Settings) -> Ledger:
    ledger = Ledger.open(settings.layout.ledger)
    try:
        ledger.revisions.ensure_base(settings.model.name, datetime.now(UTC))
    except BaseException:
        ledger.close()
        raise
    return ledger


def patiently(
    step: Callable[[], _Made],
    until: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> _Made:
    """What `step` gives; tried again `until` then (of `clock`) while the disk is full or the ledger
    locked."""
    failures = 0
    while True:
        try:
            return step()
        except (LedgerBusy, DiskFull, OSError) as error:
            passes = isinstance(error, LedgerBusy | DiskFull) or error.errno in FULL
            failures += 1
            pause = pause_s(failures, FIRST_WAIT_S, LONGEST_WAIT_S)
            if not passes or clock() + pause > until:
                raise
            log.warning("the start waits", reason=str(error), again_in_s=pause)
            notify(f"STATUS=waits: {error}")
            sleep(pause)


async def _run(settings: Settings, ledger: Ledger, reload: Callable[[], Settings] | None) -> None:
    page = Page(settings) if settings.web.enabled else None
    await Service(settings, ledger, Servers(settings), reload=reload, page=page).run()
