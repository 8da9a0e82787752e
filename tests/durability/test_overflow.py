"""More events than the kernel keeps: the file whose event was lost is found all the same."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from policies.records import BatchState
from tests.support.crash_tour import Tour
from tests.support.crashing import Site

pytestmark = [pytest.mark.durability, pytest.mark.timeout(120)]

ALL_EVENTS, Q_OVERFLOW = 0xFFF, 0x4000
KEPT = Path("/proc/sys/fs/inotify/max_queued_events")
EACH = 3  # events of a file that is made: created, opened, closed

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def unread(folder: Path) -> Iterator[int]:
    """A watch of the same folder on the same terms, whose events nobody reads."""
    descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0
    try:
        assert _libc.inotify_add_watch(descriptor, os.fsencode(folder), ALL_EVENTS) >= 0
        yield descriptor
    finally:
        os.close(descriptor)


def masks(descriptor: int) -> Iterator[int]:
    """Of each event what happened (`struct inotify_event` of inotify(7))."""
    while True:
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        place = 0
        while place < len(data):
            _, mask, _, size = struct.unpack_from("iIII", data, place)
            yield mask
            place += 16 + size


def test_a_file_whose_event_was_lost_is_found_by_the_next_scan(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    intake = site.settings.intake.model_copy(update={"watch": "events", "rescan_s": 1.0})
    site.settings = site.settings.model_copy(update={"intake": intake})
    try:
        tour = Tour(site)
        site.start()
        tour.play("learn")
        daemon = site.alive()
        with unread(site.layout.inbox) as watch:
            os.kill(daemon.pid, signal.SIGSTOP)
            for number in range(int(KEPT.read_text()) // EACH + 100):
                (site.layout.inbox / f".{number}.part").touch()
            tour.number += 1
            name = tour.put(f"true {tour.number}")
            os.kill(daemon.pid, signal.SIGCONT)
            lost = any(what & Q_OVERFLOW for what in masks(watch))
            assert lost, "the kernel has kept every event"
        tour.rest()
        assert tour.state_of(name) == BatchState.LIVE
        tour.held()
        assert site.alive() is daemon
        assert site.starts == 1
    finally:
        site.close()
