"""Figures that take long are gathered beside whoever asks for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from daemon.web.gathering import Gathering
from policies.errors import LedgerBusy


@pytest.fixture
def made() -> Iterator[list[Gathering[Any]]]:
    begun: list[Gathering[Any]] = []
    yield begun
    for gathering in begun:
        gathering.end()


def test_whoever_asks_waits_for_a_moment_only_and_hears_of_it_later(
    made: list[Gathering[Any]],
) -> None:
    done = threading.Event()

    def slowly(_: str | None) -> str:
        done.wait(10)
        return "found"

    made.append(gathering := Gathering(slowly, 60, "a test"))
    gathering.begin()
    began = time.monotonic()
    assert gathering.latest() is None
    assert time.monotonic() - began < 1
    done.set()
    assert gathering.latest(10) == "found"


def test_what_is_cheap_is_fresh_for_each_who_asks(made: list[Gathering[Any]]) -> None:
    counter = iter(range(10**6))
    made.append(gathering := Gathering(lambda _: next(counter), 60, "a test"))
    gathering.begin()
    first, second = gathering.latest(10), gathering.latest(10)
    assert first is not None
    assert second is not None
    assert second > first


def test_what_takes_long_is_gathered_a_small_share_of_the_time(
    made: list[Gathering[Any]],
) -> None:
    runs: list[float] = []

    def slowly(_: int | None) -> int:
        runs.append(time.monotonic())
        time.sleep(0.05)
        return len(runs)

    made.append(gathering := Gathering(slowly, 0.001, "a test"))
    gathering.begin()
    until = time.monotonic() + 0.9
    while time.monotonic() < until:
        gathering.latest()
    assert len(runs) == 1


def test_what_could_not_be_gathered_is_not_told_and_tried_again(
    made: list[Gathering[Any]],
) -> None:
    failing = [LedgerBusy("in use"), ValueError("a defect")]

    def gather(_: str | None) -> str:
        if failing:
            raise failing.pop()
        return "found"

    made.append(gathering := Gathering(gather, 0.05, "a test"))
    gathering.begin()
    assert gathering.latest(10) is None
    until = time.monotonic() + 20
    while (said := gathering.latest()) is None and time.monotonic() < until:
        time.sleep(0.02)
    assert (said, failing) == ("found", [])
