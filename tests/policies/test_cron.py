"""Which minutes a cron expression names, and what is none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.cron import matches, next_after, require_cron

NOW = datetime(2026, 11, 2, 12, 30, tzinfo=UTC)  # a Monday


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
        require_cron(cron)


@given(st.text("0123456789*/,-#L mon", max_size=20))
def test_any_text_is_a_cron_or_refused_in_one_line(text: str) -> None:
    try:
        require_cron(text)
    except ValueError as error:
        assert str(error).startswith(f'"{text}" ')
        return
    assert len(text.split()) == 5
    matches(text, NOW)


def test_seconds_are_no_field() -> None:
    with pytest.raises(ValueError, match="needs five fields"):
        require_cron("0 * * * * *")


def test_all_seconds_of_a_minute_match_in_whatever_zone_it_is_told() -> None:
    there = timezone(timedelta(hours=5, minutes=30))
    assert matches("30 12 * * *", NOW.replace(second=59, microsecond=999_999).astimezone(there))
    assert not matches("30 12 * * *", NOW + timedelta(minutes=1))


def test_the_next_time_is_later_and_matches() -> None:
    assert next_after("30 12 * * *", NOW) == NOW + timedelta(days=1)
    assert next_after("30 12 * * *", NOW - timedelta(seconds=1)) == NOW
    assert next_after("0 0 29 2 *", NOW) == datetime(2028, 2, 29, tzinfo=UTC)
