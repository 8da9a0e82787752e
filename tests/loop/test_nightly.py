"""Calendar work: what is stored is verified at the start and at night, what is wrong is told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon.base.control import ask
from daemon.config.sections import DaemonSettings
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop import nightly
from daemon.loop.nightly import IntegrityGuard
from daemon.loop.preflight import prepare_state
from tests.support.crashing import Site
from tests.support.fake_vllm import publish
from tests.support.tampering import written

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings.model_validate(
        {
            "state_dir": tmp_path / "state",
            "model": {"path": tmp_path},
            "server": {"mode": "attach", "urls": ["http://127.0.0.1:9"]},
        }
    ).rooted(tmp_path)
    prepare_state(made)
    return made


def guarded(settings: Settings, work: Callable[[IntegrityGuard, Ledger], Any]) -> Any:
    """What `work` sees of a daemon's guard over the ledger of `settings`, begun and stopped."""

    async def main(ledger: Ledger) -> Any:
        guard = IntegrityGuard(ledger, settings, now=lambda: NOW, clock=time.monotonic)
        await guard.begin()
        ledger.revisions.ensure_base("base", NOW)
        ledger.meta.pause(True, "a test", NOW)
        await guard.sign()
        try:
            return await work(guard, ledger)
        finally:
            await guard.stop()

    with Ledger.open(settings.layout.ledger) as ledger:
        return asyncio.run(main(ledger))


def test_what_is_as_it_was_written_passes(settings: Settings) -> None:
    publish(settings.layout.served, 1)
    publish(settings.layout.served, 2)

    async def work(guard: IntegrityGuard, _: Ledger) -> tuple[str, ...]:
        await guard.check()
        return guard.trouble

    with capture_logs() as said:
        assert guarded(settings, work) == ()
    (whole,) = [line for line in said if line["event"] == "verified" and not line["quick"]]
    assert (whole["directories"], whole["findings"]) == (2, 0)
    assert whole["events"] >= 1


def test_a_revision_whose_bytes_changed_is_told(settings: Settings) -> None:
    name = publish(settings.layout.served, 2)
    (settings.layout.served / name / "identity.json").write_text("{}")

    async def work(guard: IntegrityGuard, _: Ledger) -> tuple[str, ...]:
        await guard.check()
        return guard.trouble

    (line,) = guarded(settings, work)
    assert f"{name}: identity.json has changed; restore it from a backup" in line


def test_what_is_told_is_kept_short(settings: Settings) -> None:
    for number in range(1, 9):
        name = publish(settings.layout.served, number)
        (settings.layout.served / name / "identity.json").write_text("{}")

    async def work(guard: IntegrityGuard, _: Ledger) -> tuple[str, ...]:
        await guard.check()
        return guard.trouble

    lines = guarded(settings, work)
    assert len(lines) == nightly.SHOWN + 1
    assert lines[-1] == "and 3 more findings: run `palorad verify`"


def test_a_start_verifies_quickly_by_itself(settings: Settings) -> None:
    async def nothing(guard: IntegrityGuard, _: Ledger) -> None: ...

    guarded(settings, nothing)
    with written(settings.layout) as raw:
        raw.execute("DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)")

    async def work(guard: IntegrityGuard, _: Ledger) -> tuple[str, ...]:
        end = time.monotonic() + 20
        while len(guard.trouble) < 2:
            assert time.monotonic() < end, guard.trouble
            await asyncio.sleep(0.02)
        return guard.trouble

    assert all("the history was" in line for line in guarded(settings, work))


def test_a_stop_does_not_wait_for_the_end_of_a_verification(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 9):
        publish(settings.layout.served, number)
    slow = nightly.verify

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return slow(*arguments, **options)

    monkeypatch.setattr(nightly, "verify", slowly)

    async def work(guard: IntegrityGuard, _: Ledger) -> asyncio.Task[None]:
        task = asyncio.create_task(guard.check())
        await asyncio.sleep(0)
        return task

    with capture_logs() as said:
        guarded(settings, work)
    assert not [line for line in said if line["event"] == "verified" and not line["quick"]]


def test_what_is_found_stands_in_the_status_until_it_is_accepted(tmp_path: Path) -> None:
    """Through the running daemon: a history that was cut off while it was stopped."""
    one = Site(tmp_path / "site")
    try:
        one.start()
        one.drop("a.jsonl", ["one"])
        ask(one.layout.control_socket, "pause", because="the last event")
        assert one.stop() == 0
        with written(one.layout) as raw:
            raw.execute("DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)")
        one.start()
        one.until(one.layout.control_socket.exists, "starting")
        socket = one.layout.control_socket
        one.until(lambda: _says(socket, "cut off behind event"), "finding it")
        assert "accepted and signed" in ask(socket, "accept", because="a test")["line"]
        one.until(lambda: ask(socket, "status")["trouble"] == [], "being clean again")
        ask(socket, "resume")
        one.drop("b.jsonl", ["two"])
        assert one.stop() == 0
    finally:
        one.close()


def _says(socket: Path, words: str) -> bool:
    return any(words in line for line in ask(socket, "status")["trouble"])


def test_the_day_of_the_week_is_counted_as_cron_does() -> None:
    sunday = datetime(2026, 11, 1, 12, tzinfo=UTC)

    async def job() -> None: ...

    (added,) = nightly.calendar(("0 3 * * 0", job)).get_jobs()
    assert added.trigger.get_next_fire_time(None, sunday) == datetime(2026, 11, 8, 3, tzinfo=UTC)
    assert nightly.calendar(("", job)).get_jobs() == []


def test_the_job_runs_and_what_it_misses_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    """A job that is two hours late, as after a sleep of the machine, is left out with a warning."""
    ran = 0

    async def job() -> None:
        nonlocal ran
        ran += 1

    async def run(late: timedelta) -> None:
        scheduler = nightly.calendar(("* * * * *", job))
        scheduler.start()
        (added,) = scheduler.get_jobs()
        added.modify(next_run_time=datetime.now(UTC) - late)
        await asyncio.sleep(0.2)
        scheduler.shutdown(wait=False)

    asyncio.run(run(timedelta(minutes=5)))
    assert ran == 1
    with caplog.at_level(logging.WARNING):
        asyncio.run(run(timedelta(hours=2)))
    assert ran == 1
    assert "was missed by" in caplog.text


@pytest.mark.parametrize("cron", ["now", "0 0 0 0 0", "61 * * * *"])
def test_a_time_that_is_none_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match="check_at"):
        DaemonSettings(check_at=cron)
    assert DaemonSettings(check_at="").check_at == ""
