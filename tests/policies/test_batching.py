"""Facts are gathered until there are enough, or it is time; urgent ones are not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.batching import Batching, matches, not_yet, parse_cron

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


@pytest.mark.parametrize(
    ("cron", "matching"),
    [
        ("* * * * *", True),
        ("30 12 * * *", True),
        ("31 12 * * *", False),
        ("*/15 * * * *", True),
        ("*/7 * * * *", False),
        ("0,30 10-14 * nov mon", True),
        ("* * 3 * *", False),
        ("* * 3 * mon", True),
        ("* * * * 0", False),
        ("* * * * 7,1", True),
        ("5/5 * * * *", True),
    ],
)
def test_cron_names_minutes(cron: str, matching: bool) -> None:
    assert matches(cron, NOW) is matching


@pytest.mark.parametrize(
    "cron", ["", "* * * *", "60 * * * *", "* 5-3 * * *", "* * * * mo", "*/0 * * * *"]
)
def test_what_is_no_cron_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_cron(cron)


@given(st.text("0123456789*/,- mon", max_size=20))
def test_any_text_is_a_cron_or_refused(text: str) -> None:
    try:
        parsed = parse_cron(text)
    except ValueError:
        return
    assert len(parsed) == 5 and all(parsed)
