"""Cron expressions, always in UTC: five fields, minute to weekday, as Debian's cron reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cronsim import CronSim, CronSimError

_MINUTE = timedelta(minutes=1)
_ANY = datetime(2000, 1, 1, tzinfo=UTC)


def matches(cron: str, now: datetime) -> bool:
    """Whether `now` lies in a minute that a cron expression names; `ValueError` if it is none.

    As in cron, a day matches by month or by week when both are restricted.
    """
    minute = now.astimezone(UTC).replace(second=0, microsecond=0)
    return _next(cron, minute - _MINUTE) == minute


def next_after(cron: str, now: datetime) -> datetime | None:
    """The next minute after `now` that a cron expression names; none where there never is one."""
    return _next(cron, now.astimezone(UTC))


def require_cron(cron: str) -> str:
    """The expression as it is; raises `ValueError` if it is none."""
    _parsed(cron, _ANY)
    return cron


@lru_cache(maxsize=64)
def _next(cron: str, after: datetime) -> datetime | None:
    return next(_parsed(cron, after), None)


def _parsed(cron: str, after: datetime) -> CronSim:
    if len(cron.split()) != 5:
        raise ValueError(f'"{cron}" needs five fields: minute hour day month weekday')
    try:
        return CronSim(cron, after)
    except CronSimError as error:
        raise ValueError(f'"{cron}" is no cron expression: {error}') from None
