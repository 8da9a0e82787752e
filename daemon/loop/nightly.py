"""Calendar work: everything stored is compared with its hashes, what need not be kept removed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from adapters import store
from daemon.config.layout import Layout
from daemon.ledger.ledger import Ledger
from policies.cron import next_after
from policies.errors import Inconsistent

LATE_S: Final = 3600

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


async def check(layout: Layout) -> None:
    """Compare the ledger's chain of events and every published directory with their hashes.

    Raises `LedgerUnusable` or `Inconsistent` naming what differs first; nothing is changed.
    """
    events = await asyncio.to_thread(_check_ledger, layout.ledger)
    directories = list(_published(layout))
    for directory in directories:
        if problems := await asyncio.to_thread(_problems, directory):
            raise Inconsistent(
                f"{directory} is not what was published: {problems[0]}; restore it from a backup, "
                "or retrain with `palorad consolidate`"
            )
    log.info("everything stored is what was written", events=events, directories=len(directories))


def _check_ledger(path: Path) -> int:
    with Ledger.open(path, readonly=True) as ledger:
        return ledger.events.verify_chain()


def _published(layout: Layout) -> Iterator[Path]:
    for parent in (layout.adapters, layout.served):
        if parent.is_dir():
            yield from (p for p in sorted(parent.iterdir()) if p.is_dir() and p.name[0] != ".")


def _problems(directory: Path) -> tuple[str, ...]:
    """What is wrong with a directory; nothing if a retraction has deleted it meanwhile."""
    problems = store.verify(directory)
    return problems if directory.is_dir() else ()
