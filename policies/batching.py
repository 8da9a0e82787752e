"""When waiting facts are learnt: enough of them, waited long enough, not in quiet hours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from policies.records import Record

_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS: Final = (
    "",
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
)
_NAMES: Final = {name: n for names in (_DAYS, _MONTHS) for n, name in enumerate(names) if name}
_RANGES: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


class Batching(Record):
    """How facts are gathered: at least `min_facts`, unless the oldest has waited `max_wait_s`;
    never while one of the `quiet` cron expressions matches (UTC). Urgent facts do not wait.
    """

    min_facts: int = 1
    max_wait_s: float = 0.0
    quiet: tuple[str, ...] = ()


def not_yet(
    rules: Batching, count: int, oldest: datetime | None, urgent: bool, now: datetime
) -> str | None:
    """Why `count` waiting facts are not learnt yet, in one line; none where they may be."""
    if urgent or not count:
        return None
    if cron := quiet(rules, now):
        return f"{count} facts wait: quiet hours ({cron})"
    if count >= rules.min_facts or oldest is None:
        return None
    begins = oldest + timedelta(seconds=rules.max_wait_s)
    if now >= begins:
        return None
    return f"{count} of at least {rules.min_facts} facts wait, until {begins:%Y-%m-%d %H:%M:%SZ}"


def quiet(rules: Batching, now: datetime) -> str | None:
    """The cron expression of the quiet hours that it is; none outside of them."""
    return next((cron for cron in rules.quiet if matches(cron, now)), None)


def matches(cron: str, now: datetime) -> bool:
    """Whether a minute is one that a cron expression names; raises `ValueError` if it is none.

    As in cron, a day matches by month or by week when both are restricted.
    """
    minutes, hours, days, months, weekdays = parse_cron(cron)
    at = now.astimezone(UTC)
    if at.minute not in minutes or at.hour not in hours or at.month not in months:
        return False
    of_month, of_week = at.day in days, at.isoweekday() % 7 in weekdays
    restricted = [field != "*" for field in cron.split()]
    if restricted[2] and restricted[4]:
        return of_month or of_week
    return of_month and of_week


@lru_cache(maxsize=64)
def parse_cron(cron: str) -> tuple[frozenset[int], ...]:
    """The values that each of the five fields names; raises `ValueError`."""
    fields = cron.lower().split()
    if len(fields) != len(_RANGES):
        raise ValueError(f'"{cron}" needs five fields: minute hour day month weekday')
    parsed = [_values(field, *bounds) for field, bounds in zip(fields, _RANGES, strict=True)]
    parsed[4] = frozenset(day % 7 for day in parsed[4])
    return tuple(parsed)


def _values(field: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        start, stop = (low, high) if span == "*" else (_number(first), _number(last or first))
        if step and span != "*" and not last:
            stop = high
        every = _number(step) if step else 1
        if not (low <= start <= stop <= high) or every < 1:
            raise ValueError(f'"{part}" is not between {low} and {high}')
        found.update(range(start, stop + 1, every))
    return frozenset(found)


def _number(text: str) -> int:
    if text in _NAMES:
        return _NAMES[text]
    if not text.isascii() or not text.isdigit():
        raise ValueError(f'"{text}" is no number')
    return int(text)


def valid_crons(crons: Sequence[str]) -> None:
    """Raises `ValueError` for the first that is no cron expression."""
    for cron in crons:
        parse_cron(cron)
