"""When waiting facts are learnt: enough of them, waited long enough, not in quiet hours."""

from __future__ import annotations

from datetime import datetime, timedelta

from policies.cron import matches
from policies.records import Record


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
    # What came later than now was dated by a clock that was wrong: nobody knows how long it waits.
    if now >= begins or oldest > now:
        return None
    return f"{count} of at least {rules.min_facts} facts wait, until {begins:%Y-%m-%d %H:%M:%SZ}"


def quiet(rules: Batching, now: datetime) -> str | None:
    """The cron expression of the quiet hours that it is; none outside of them."""
    return next((cron for cron in rules.quiet if matches(cron, now)), None)
