"""Trouble that lasts is told, told again, and its end is told; over restarts too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.config.notify import NotifySettings
from daemon.ledger.ledger import Ledger
from daemon.notification import messages
from daemon.notification.trouble_watch import TroubleWatch
from policies.notifications import Notification
from tests.support.world import START

FULL = "/state: only 3 MB are free"


class Place:
    def __init__(self, root: Path) -> None:
        self.settings = NotifySettings(trouble_after_s=60, remind_s=3600)
        self.ledger = Ledger.open(root / "ledger.db")
        self.ledger.outbox.tell(frozenset(Notification))
        self.seconds = 0.0
        self.start()

    def start(self) -> None:
        self.watch = TroubleWatch(
            self.ledger,
            self.settings,
            now=lambda: START + timedelta(seconds=self.seconds),
            clock=lambda: self.seconds,
        )

    def goes_on(self, seconds: float, *lines: str) -> list[str]:
        """What is told while these lines of trouble are there, looked at every 10 s."""
        before = self.ledger.outbox.counts()[0]
        for _ in range(int(seconds / 10)):
            self.watch.look(lines)
            self.seconds += 10
        told = self.ledger.outbox.waiting(99)[before:]
        found = (json.loads(messages.body(self.ledger, one)) for one in told)
        return [f"{one['type']}: {one['data'].get('line', '')}" for one in found]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.ledger.close()


def test_what_comes_and_goes_is_not_told(place: Place) -> None:
    assert place.goes_on(50, FULL) == []
    assert place.goes_on(50) == []
    assert place.goes_on(50, FULL) == []


def test_begin_reminders_and_end(place: Place) -> None:
    assert place.goes_on(300, FULL) == [f"trouble.began: {FULL}"]
    assert place.goes_on(7200, FULL) == [f"trouble.lasts: {FULL}"] * 2
    assert place.goes_on(300) == [f"trouble.ended: {FULL}"]
    assert place.goes_on(300) == []


def test_a_gap_is_no_end(place: Place) -> None:
    place.goes_on(300, FULL)
    assert place.goes_on(50) == []
    assert place.goes_on(600, FULL) == []


def test_a_line_that_counts_on_is_one_trouble_and_another_line_another(place: Place) -> None:
    for minutes in range(12):
        place.goes_on(60, f"feed news: {minutes} failures in a row")
    assert place.ledger.outbox.counts() == (1, 0)
    both = place.goes_on(120, "feed news: 99 failures in a row", "feed other: 9 failures in a row")
    assert both == ["trouble.began: feed other: 9 failures in a row"]


def test_two_replicas_are_two_troubles_whatever_their_names_count(place: Place) -> None:
    lines = ("http://gpu1:8000: no answer", "http://gpu2:8000: no answer", "http://10.0.0.1: no")
    assert len(place.goes_on(300, *lines, "http://10.0.0.2: no")) == 4


def test_a_restart_tells_neither_a_second_begin_nor_forgets_the_end(place: Place) -> None:
    place.goes_on(300, FULL)
    place.start()
    assert place.goes_on(300, FULL) == []
    place.start()
    assert place.goes_on(300) == ["trouble.ended: "]


def test_no_reminder_where_none_is_asked_for(place: Place) -> None:
    place.settings = NotifySettings(trouble_after_s=0, remind_s=0)
    place.start()
    assert place.goes_on(20000, FULL) == [f"trouble.began: {FULL}"]
