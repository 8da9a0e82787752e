"""Calendar work: what is stored is compared with its hashes, and what is wrong is told."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.config.layout import Layout
from daemon.config.sections import DaemonSettings
from daemon.ledger.ledger import Ledger
from daemon.loop import nightly
from policies.errors import Inconsistent, LedgerUnusable
from tests.support.fake_vllm import publish


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state")
    made.served.mkdir(parents=True)
    with Ledger.open(made.ledger) as ledger:
        ledger.revisions.ensure_base("base", datetime(2026, 11, 1, tzinfo=UTC))
        ledger.meta.pause(True, "a test", datetime(2026, 11, 2, tzinfo=UTC))
    return made


def test_what_is_as_it_was_written_passes(layout: Layout) -> None:
    publish(layout.served, 1)
    publish(layout.served, 2)
    with capture_logs() as said:
        asyncio.run(nightly.check(layout))
    assert said[-1]["directories"] == 2
    assert said[-1]["events"] >= 1


def test_a_revision_whose_bytes_changed_is_named(layout: Layout) -> None:
    publish(layout.served, 1)
    name = publish(layout.served, 2)
    (layout.served / name / "identity.json").write_text("{}")
    with pytest.raises(Inconsistent, match=rf"{name} is not what was published: identity.json has"):
        asyncio.run(nightly.check(layout))


def test_an_event_that_was_altered_is_named(layout: Layout) -> None:
    raw = sqlite3.connect(layout.ledger)
    raw.execute("DROP TRIGGER events_say")
    raw.execute("UPDATE events SET payload = '{}' WHERE seq = 1")
    raw.commit()
    raw.close()
    with pytest.raises(LedgerUnusable, match="event 1 is not what was written"):
        asyncio.run(nightly.check(layout))


def test_what_a_retraction_deletes_meanwhile_is_no_problem(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = publish(layout.served, 1)

    def deleted(directory: Path) -> tuple[str, ...]:
        directory.rename(layout.root / "gone")
        return ("identity.json is missing",)

    monkeypatch.setattr("adapters.store.verify", deleted)
    asyncio.run(nightly.check(layout))
    assert not (layout.served / name).exists()


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
