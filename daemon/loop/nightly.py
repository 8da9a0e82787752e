"""Guards what is stored: signs the history as it grows, and verifies by the calendar."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop.boundary import Boundary
from daemon.loop.ticking import every
from daemon.verification.findings import Interrupted, Report
from daemon.verification.keeper import Keeper
from daemon.verification.verify import verify
from policies.cron import next_after

LATE_S: Final = 3600
AGAIN_S: Final = 1800
SHOWN: Final = 5

log = structlog.get_logger(__name__)


class _Cron(BaseTrigger):  # type: ignore[misc]  # apscheduler has no types
    """The scheduler's own reading of cron counts the days of a week from Monday."""

    def __init__(self, cron: str) -> None:
        self._cron = cron

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        return next_after(self._cron, now if previous is None else max(previous, now))


def calendar(*jobs: tuple[str, Callable[[], Awaitable[None]]]) -> AsyncIOScheduler:
    """A scheduler, not yet started, that runs each job when its cron expression says so; never
    where that is "".

    What is missed by less than `LATE_S` seconds is made up for once; what it warns of is logged.
    """
    scheduler = AsyncIOScheduler(timezone=UTC)
    for cron, job in jobs:
        if cron:
            scheduler.add_job(job, _Cron(cron), coalesce=True, misfire_grace_time=LATE_S)
    return scheduler


class IntegrityGuard:
    """What the running daemon does so that nothing stored changes unnoticed.

    Nothing that it finds stops the daemon: the status tells it.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        *,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`clock` in seconds, set by nobody."""
        self._settings = settings
        self._now = now
        self._boundary = Boundary()
        self._keeper = Keeper(ledger, settings.layout, settings.anchor, clock)
        self._one_at_a_time = asyncio.Lock()
        self._stop = threading.Event()
        self._task: asyncio.Task[None] | None = None
        self._report = Report()
        self._quick = True

    @property
    def trouble(self) -> tuple[str, ...]:
        """What was found last, and what could not be done."""
        lines = self._report.lines
        more = len(lines) - SHOWN
        said = (f"and {more} more findings: run `palorad verify`",) if more > 0 else ()
        return (*lines[:SHOWN], *said, *self._boundary.trouble)

    async def begin(self) -> None:
        """Before anything is recorded; verifies quickly while the daemon goes on.

        Raises `OSError` where a new history cannot be signed: it is not to begin without that.
        """
        self._keeper.begin(self._now())
        self._task = asyncio.create_task(self.check(quick=True))

    def ticks(self) -> Iterator[Coroutine[None, None, None]]:
        """What comes again and again."""
        tick_s = self._settings.daemon.tick_s
        yield every(tick_s, self.sign)
        yield every(AGAIN_S, self._look_again, first_after_s=AGAIN_S)
        if self._settings.anchor.file is not None or self._settings.anchor.webhook:
            yield every(tick_s, self.send)

    async def sign(self) -> None:
        """Sign what history has grown by."""
        await self._boundary.run("the history", self._sign)

    async def _sign(self) -> None:
        self._keeper.sign(self._now())

    async def send(self, *, at_once: bool = False) -> None:
        """Send the signed head outside."""
        await self._boundary.run("the history outside", lambda: self._keeper.send(at_once=at_once))

    async def accept(self, because: str) -> int:
        """A person accepts the history as it is; how many events are signed. Raises `OSError`."""
        events = self._keeper.accept(because, self._now())
        await self.sign()
        self._task = asyncio.create_task(self.check())
        return events

    async def check(self, *, quick: bool = False) -> None:
        """Verify everything stored, or quickly what a start relies on."""
        await self._boundary.run("the verification", lambda: self._check(quick=quick))

    async def _check(self, *, quick: bool) -> None:
        async with self._one_at_a_time:
            work = partial(verify, self._settings, quick=quick, running=True, stop=self._stop)
            with suppress(Interrupted):
                self._report, self._quick = await asyncio.to_thread(work), quick
                log.info(
                    "verified",
                    quick=quick,
                    findings=len(self._report.findings),
                    skipped=self._report.skipped,
                    **self._report.counted,
                )
                for line in self._report.lines:
                    log.warning("verification", line=line)

    async def _look_again(self) -> None:
        """Whether what was found has been mended meanwhile."""
        if self._report.code:
            await self.check(quick=self._quick)

    async def stop(self) -> None:
        """End what is under way; sign what the last steps have added."""
        self._stop.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await self.sign()
        await self.send(at_once=True)
