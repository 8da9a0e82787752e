"""Facts are gathered until there are enough, or it is time; urgent ones are not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from policies.batching import Batching, not_yet

NOW = datetime(2026, 11, 2, 12, 30, tzinfo=UTC)  # a Monday
RULES = Batching(min_facts=10, max_wait_s=600)


@pytest.mark.parametrize(
    ("count", "waited_s", "urgent", "waits"),
    [
        (3, 0, False, True),
        (10, 0, False, False),
        (3, 599, False, True),
        (3, 600, False, False),
        (3, 0, True, False),
        (0, 0, False, False),
    ],
)
def test_enough_or_long_enough(count: int, waited_s: float, urgent: bool, waits: bool) -> None:
    oldest = NOW - timedelta(seconds=waited_s)
    assert (not_yet(RULES, count, oldest, urgent, NOW) is not None) is waits


def test_quiet_hours_hold_everything_but_the_urgent() -> None:
    rules = Batching(quiet=("* 8-17 * * mon-fri",))
    reason = not_yet(rules, 500, NOW - timedelta(days=1), False, NOW)
    assert reason == "500 facts wait: quiet hours (* 8-17 * * mon-fri)"
    assert not_yet(rules, 500, NOW, True, NOW) is None
    assert not_yet(rules, 500, NOW, False, NOW + timedelta(hours=6)) is None
    assert not_yet(rules, 500, NOW, False, NOW - timedelta(days=1)) is None
