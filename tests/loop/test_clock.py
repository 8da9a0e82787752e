"""A wall clock that is set back or forward: everything goes on within its usual pauses."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from daemon.config.feeds import FeedSettings
from daemon.config.sections import IntakeSettings
from daemon.intake.feeds import Cursor, Feeds
from daemon.intake.intake import Intake
from policies.batching import Batching, not_yet
from policies.planning import Limits, OpenPlan, Run, Snapshot, Step, next_action
from policies.records import BatchState, PlanKind, PlanState
from tests.support import clocks
from tests.support.crashing import Site
from tests.support.fake_steps import SLOWNESS
from tests.support.world import START, World

DAY, YEAR = timedelta(days=1), timedelta(days=365)
NONE = timedelta(0)
SETTINGS = [(-DAY,), (YEAR, NONE)]
IDS = ["back a day", "forward a year and corrected"]


class Turned:
    """A site whose daemon's wall clock can be set."""

    def __init__(self, root: Path, **train: Any) -> None:
        self.site = Site(root / "site")
        self.file = root / "clock"
        self.site.environment[clocks.VARIABLE] = os.fspath(self.file)
        settings = self.site.settings
        self.site.settings = settings.model_copy(
            update={"train": settings.train.model_copy(update=train)}
        )

    def set(self, by: timedelta) -> None:
        clocks.put(self.file, by)

    def set_all(self, settings: tuple[timedelta, ...]) -> None:
        """One after the other, long enough to be noticed by every tick."""
        for by in settings:
            self.set(by)
            time.sleep(0.5)


@pytest.fixture
def train() -> dict[str, Any]:
    """Settings of [train] that a test changes."""
    return {}


@pytest.fixture
def one(tmp_path: Path, train: dict[str, Any]) -> Iterator[Turned]:
    made = Turned(tmp_path, **train)
    yield made
    made.site.close()


def kinds(site: Site) -> list[str]:
    with site.reading() as ledger:
        return [event.kind for event in ledger.events.latest(1000)]


# --- the whole daemon ------------------------------------------------------------------------


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_idle_it_takes_in_learns_and_serves(one: Turned, settings: tuple[timedelta, ...]) -> None:
    one.site.start()
    one.site.drop("a.jsonl", ["one"])
    one.set_all(settings)
    one.site.drop("b.jsonl", ["two"])
    with one.site.reading() as ledger:
        assert ledger.batches.state(ledger.batches.get("b.jsonl").id) is BatchState.LIVE
    one.site.restart_replica()
    one.site.until(lambda: _verified(one.site), "serving on a replica that came back")
    assert one.site.stop() == 0


def _verified(site: Site) -> bool:
    from daemon.base.control import ask

    (replica,) = ask(site.layout.control_socket, "status")["replicas"]
    return bool(replica["ready"] and replica["verified_at"])


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_systemds_watchdog_is_fed(
    one: Turned, tmp_path: Path, settings: tuple[timedelta, ...]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(os.fspath(tmp_path / "notify"))
        systemd.settimeout(5)
        one.site.environment |= {
            "NOTIFY_SOCKET": os.fspath(tmp_path / "notify"),
            "WATCHDOG_USEC": "400000",
        }
        one.site.start()
        assert systemd.recv(100) == b"READY=1"
        one.set_all(settings)
        systemd.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                systemd.recv(100)
        systemd.settimeout(2)
        assert [systemd.recv(100) for _ in range(4)] == [b"WATCHDOG=1"] * 4
        assert one.site.stop() == 0


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_a_running_step_is_left_alone(one: Turned, settings: tuple[timedelta, ...]) -> None:
    one.site.environment[SLOWNESS] = "1.5"
    one.site.start()
    one.site.until(one.site.layout.inbox.is_dir, "starting")
    (one.site.layout.inbox / "a.jsonl").write_text('{"prompt": "one", "answer": "1"}\n')
    one.site.until(lambda: any(one.site.layout.work.glob("*-train/counter")), "training")
    one.set_all(settings)
    one.site.until(lambda: one.site._rests("a.jsonl"), "learning a")
    assert "stage.failed" not in kinds(one.site)
    assert one.site.stop() == 0


@pytest.mark.parametrize("train", [{"backoff_s": 2.0}])
@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_after_a_failure_it_tries_again_in_its_time(
    one: Turned, settings: tuple[timedelta, ...]
) -> None:
    one.site.start()
    one.site.until(one.site.layout.inbox.is_dir, "starting")
    one.set(settings[0] if len(settings) > 1 else NONE)
    (one.site.layout.inbox / "a.jsonl").write_text('{"prompt": "flaky", "answer": "1"}\n')
    one.site.until(lambda: "stage.failed" in kinds(one.site), "failing")
    began = time.monotonic()
    one.set(settings[-1])
    one.site.until(lambda: one.site._rests("a.jsonl"), "learning a")
    assert time.monotonic() - began > 1.0
    with one.site.reading() as ledger:
        assert ledger.batches.state(ledger.batches.get("a.jsonl").id) is BatchState.LIVE
    assert one.site.stop() == 0


@pytest.mark.parametrize("train", [{"min_facts": 5, "max_wait_s": 3.0}])
@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_gathered_facts_are_learnt_in_their_time(
    one: Turned, settings: tuple[timedelta, ...]
) -> None:
    one.site.start()
    one.site.until(one.site.layout.inbox.is_dir, "starting")
    one.set(settings[0] if len(settings) > 1 else NONE)
    (one.site.layout.inbox / "a.jsonl").write_text('{"prompt": "one", "answer": "1"}\n')
    one.site.until(lambda: "batch.admitted" in kinds(one.site), "taking it in")
    time.sleep(0.5)
    one.set(settings[-1])
    time.sleep(0.5)
    assert "plan.made" not in kinds(one.site)
    one.site.until(lambda: one.site._rests("a.jsonl"), "learning a")
    assert one.site.stop() == 0


class _Feed(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
def test_feeds_are_asked_again(one: Turned, settings: tuple[timedelta, ...]) -> None:
    class Feed(_Feed):
        body = b'{"prompt": "one", "answer": "1"}\n'

    server = ThreadingHTTPServer(("127.0.0.1", 0), Feed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    feed = FeedSettings(
        name="news",
        url=f"http://127.0.0.1:{server.server_address[1]}/",
        every_s=1.0,
        allow_private=True,
    )
    one.site.settings = one.site.settings.model_copy(update={"feeds": (feed,)})
    try:
        one.site.start()
        one.site.until(lambda: kinds(one.site).count("batch.admitted") == 1, "the first poll")
        one.set_all(settings)
        Feed.body = b'{"prompt": "two", "answer": "2"}\n'
        one.site.until(lambda: kinds(one.site).count("batch.admitted") == 2, "the next poll")
        assert one.site.stop() == 0
    finally:
        server.shutdown()
        server.server_close()


def test_history_never_runs_backwards(one: Turned) -> None:
    one.site.start()
    for number, by in enumerate((NONE, YEAR, NONE, -DAY)):
        if number:
            one.set(by)
        one.site.drop(f"{number}.jsonl", [f"question {number}"])
    one.site.stop()
    one.site.start()
    one.site.drop("after.jsonl", ["after a restart"])
    with one.site.reading() as ledger:
        ledger.events.verify_chain()
        for table, column, order in (
            ("events", "at", "seq"),
            ("batches", "received_at", "seq"),
            ("facts", "recorded_at", "seq"),
            ("plans", "created_at", "id"),
            ("revisions", "created_at", "number"),
        ):
            times = [r[0] for r in ledger.db.rows(f"SELECT {column} FROM {table} ORDER BY {order}")]
            assert times == sorted(times), table
            assert len(times) >= 5


# --- what was stored by a clock that was wrong -----------------------------------------------


def test_a_stored_pause_that_no_pause_is_long_enough_for_is_over() -> None:
    limits = Limits(rank=4, rank_budget=16, max_rank=16, max_facts=6, attempts=3)
    plan = OpenPlan(id=1, kind=PlanKind.LEARN, state=PlanState.PLANNED, attempts=1)

    def action(not_before: datetime) -> object:
        open_plan = plan.model_copy(update={"not_before": not_before})
        return next_action(Snapshot(limits=limits, open=open_plan), START)

    assert action(START + timedelta(minutes=59)) is None
    assert action(START + YEAR) == Run(plan=1, step=Step.TRAIN)


def test_facts_dated_later_than_now_do_not_wait_to_be_gathered() -> None:
    rules = Batching(min_facts=5, max_wait_s=60.0)
    assert not_yet(rules, 1, START - timedelta(seconds=10), False, START) is not None
    assert not_yet(rules, 1, START + DAY, False, START) is None


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("by", [-YEAR, -DAY, timedelta(minutes=-30), YEAR])
def test_a_pause_lasts_as_long_as_it_should(tmp_path: Path, by: timedelta, restarted: bool) -> None:
    world = World(tmp_path)
    world.drop(1)
    world.tick()
    world.tick()
    world.fail()
    world.tick()
    assert world.running is None
    world.now += by
    if restarted:
        world.crash()
    waited = 0
    while world.running is None:
        world.tick()
        waited += 1
        assert waited <= 3600
    if not restarted:
        assert 9 <= waited <= 11
    elif by == timedelta(minutes=-30):
        assert waited <= 1811
    else:
        assert waited <= 1


def test_a_deadline_is_counted_and_not_read_off_the_clock(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.drop(1)
    world.tick()
    world.tick()
    world.now += YEAR
    world.tick()
    assert world.running is not None
    world.now -= YEAR + DAY
    world.tick(world.settings.train.deadline_s - 10)
    assert world.running is not None
    world.tick(20)
    assert world.running is None
    assert "made no progress for train.deadline_s (3600 s)" in (
        world.ledger.plans.head(1).error or ""
    )


def test_a_server_that_was_away_is_asked_again(tmp_path: Path) -> None:
    from daemon.serving.protocol import ServerUnreachable

    world = World(tmp_path)
    world.drop(1)
    world.tick()
    world.tick()
    world.finish()
    world.tick()
    world.fleet.fault = ServerUnreachable("gone")
    world.finish()
    world.tick()
    assert "waits for the server" in world.reconciler.waits_for
    world.fleet.fault = None
    assert not world.fleet.staged
    world.now -= DAY
    world.tick(3)
    assert world.fleet.staged


def test_gathering_restarts_in_bounds_after_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path, {"train": {"min_facts": 5, "max_wait_s": 60}})
    world.drop(1)
    world.now -= DAY
    world.crash()
    world.tick()
    assert world.ledger.plans.open_plan() is not None


def test_a_held_drop_is_tried_again_by_a_clock_that_only_grows(tmp_path: Path) -> None:
    world = World(tmp_path)
    layout = world.settings.layout
    for folder in layout.directories():
        folder.mkdir(parents=True, exist_ok=True)
    seconds = [0.0]
    intake = Intake(world.ledger, layout, IntakeSettings(stable_s=2), lambda: seconds[0])
    (layout.inbox / "a.jsonl").write_text('{"prompt": "one", "answer": "1"}\n')
    layout.archive.rmdir()
    layout.archive.write_text("in the way")
    for _ in range(2):
        intake.step(START, 60)
        seconds[0] += 3
    assert intake.problems
    layout.archive.unlink()
    layout.archive.mkdir()
    seconds[0] += 6
    (receipt,) = intake.step(START - DAY, 60)
    assert receipt.accepted == 1


def test_a_feed_fetched_in_the_future_is_fetched_in_full(tmp_path: Path) -> None:
    asked: list[dict[str, str]] = []

    class Feed(_Feed):
        body = b'{"prompt": "one", "answer": "1"}\n'

        def do_GET(self) -> None:
            asked.append({name.lower(): value for name, value in self.headers.items()})
            super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Feed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    world = World(tmp_path)
    for folder in world.settings.layout.directories():
        folder.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    feed = FeedSettings(name="news", url=url, allow_private=True)
    try:
        for full_at in (START - timedelta(seconds=5), START + YEAR):
            cursor = Cursor(etag='"1"', full_at=full_at).model_dump_json(exclude_defaults=True)
            world.ledger.feeds.set_cursor("news", cursor, START)
            feeds = Feeds([feed], world.ledger, world.settings.layout, lambda: 0.0)
            asyncio.run(feeds.poll_one("news", START))
    finally:
        server.shutdown()
        server.server_close()
    assert ["if-none-match" in headers for headers in asked] == [True, False]
