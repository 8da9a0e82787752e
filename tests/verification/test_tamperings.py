"""What is tampered with is found and named; what lived through everything lawful is clean."""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path

import pytest

from daemon.base.control import ask
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.ledger.private_copy import private_copy
from daemon.serving.client import HttpServer
from daemon.verification.findings import CLEAN, FOUND, UNCHECKED, Interrupted, Report
from daemon.verification.verify import verify
from policies.errors import LedgerUnusable
from tests.support.crashing import Site
from tests.support.tampering import TAMPERINGS, Tampering, written

QUICK = {
    "the last events are cut off",
    "an event is forged and the chain recomputed",
    "a forged history is put into the signed head",
    "the signed head is deleted",
    "the target is moved",
    "the alias stands for another revision",
    "a page of the ledger is lost",
    "a file of a revision is changed",
    "a revision is deleted",
}


def without_servers(settings: Settings, **options: bool) -> Report:
    return verify(settings, servers=lambda _: (), **options)


def test_what_has_lived_through_everything_lawful_is_clean(lived: Site, settings: Settings) -> None:
    for report in (verify(lived.settings), verify(settings)):
        assert report.findings == ()
        assert (report.code, report.unchecked, report.skipped) == (CLEAN, (), ())
        assert report.counted["facts"] == 6
        assert report.counted["archives"] == 5
        assert report.counted["revisions asked"] >= 1
        assert report.counted["bases asked"] == 1
    assert verify(settings, quick=True).code == CLEAN


@pytest.mark.parametrize("name", TAMPERINGS)
def test_each_tampering_is_found_and_named(name: str, settings: Settings) -> None:
    tampering = TAMPERINGS[name]
    tampering.do(settings.layout)
    report = without_servers(settings)
    assert report.code == FOUND
    assert named(report, tampering), report.lines
    assert all(finding.advice and "\n" not in finding.line for finding in report.findings)


@pytest.mark.parametrize("name", sorted(QUICK))
def test_a_start_finds_what_it_relies_on(name: str, settings: Settings) -> None:
    TAMPERINGS[name].do(settings.layout)
    report = without_servers(settings, quick=True)
    assert report.code == FOUND
    assert named(report, TAMPERINGS[name]), report.lines


def named(report: Report, tampering: Tampering) -> bool:
    return any(
        finding.check == tampering.check
        and tampering.where in finding.where
        and tampering.words in finding.what
        for finding in report.findings
    )


def test_nothing_is_changed_by_looking(settings: Settings) -> None:
    def everything() -> dict[Path, bytes]:
        files = (path for path in settings.state_dir.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    before = everything()
    without_servers(settings)
    assert everything() == before


# --- servers ---------------------------------------------------------------------------------


def test_a_server_that_answers_from_other_weights_is_named(lived: Site, settings: Settings) -> None:
    """What was published is another thing than what the server has loaded."""
    layout = settings.layout
    name = json.loads(layout.alias.read_text())["model"]
    path = layout.served / name / "identity.json"
    stored = json.loads(path.read_text())
    for item in stored["items"]:
        item["token_ids"][1] += 1
    path.write_text(json.dumps(stored))
    report = verify(settings)
    (finding,) = [found for found in report.findings if found.check == "server"]
    assert f"{name} does not answer as it was published" in finding.what
    assert finding.where == lived.settings.server.urls[0]


def test_a_server_over_another_base_is_named(settings: Settings) -> None:
    layout = settings.layout
    for path in layout.served.glob("*/identity.json"):
        stored = json.loads(path.read_text())
        for item in stored["items"]:
            item["base_token_ids"][0] += 1
        path.write_text(json.dumps(stored))
    lines = [found.what for found in verify(settings).findings if found.check == "server"]
    assert any("the base base is not the one that was trained on" in line for line in lines)


def test_a_revision_that_the_ledger_does_not_know_is_named(settings: Settings) -> None:
    name = json.loads(settings.layout.alias.read_text())["model"]
    with written(settings.layout) as ledger:
        ledger.execute("UPDATE revisions SET served_name = 'other' WHERE served_name = ?", (name,))
        ledger.execute("UPDATE plans SET served = NULL")
    lines = [found.what for found in verify(settings).findings if found.check == "server"]
    assert any("which the ledger does not know" in line for line in lines)


def test_a_server_that_does_not_run_is_left_out_and_said_so(settings: Settings) -> None:
    report = verify(settings, servers=lambda _: (HttpServer("http://127.0.0.1:9"),))
    assert report.code == CLEAN
    (line,) = report.skipped
    assert "http://127.0.0.1:9" in line and "was not verified" in line


# --- beside the daemon -----------------------------------------------------------------------


def test_beside_the_daemon_nothing_is_found_and_nobody_waits(lived: Site) -> None:
    lived.start()
    lived.until(lived.layout.control_socket.exists, "starting")
    for number in range(3):
        lived.drop(f"more-{number}.jsonl", [f"more {number}"])
        report = verify(lived.settings, running=True)
        assert report.lines == ()
    status = ask(lived.layout.control_socket, "status")
    assert status["trouble"] == []
    assert lived.stop() == 0


def test_a_long_look_lets_the_writer_go_on(settings: Settings, tmp_path: Path) -> None:
    """Whoever reads a rollback journal's database for long keeps others from writing it."""
    other = sqlite3.connect(settings.layout.ledger, timeout=0.5)
    before = other.execute("SELECT count(*) FROM events").fetchone()[0]
    with private_copy(settings.layout.ledger) as db:
        reading = db.connection.execute("SELECT * FROM events")
        assert reading.fetchone()
        other.execute("INSERT INTO meta VALUES ('beside', 'yes')")
        other.commit()
        assert db.one("SELECT count(*) FROM events") == before
        assert db.meta("beside") is None
    other.close()


def test_a_verification_can_be_stopped(settings: Settings) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        verify(settings, servers=lambda _: (), stop=stop)


# --- what cannot be looked at ----------------------------------------------------------------


def test_what_cannot_be_looked_at_is_no_finding(settings: Settings) -> None:
    settings.layout.ledger.unlink()
    report = without_servers(settings)
    assert report.code == UNCHECKED
    assert "there is no ledger yet" in report.unchecked[0]


def test_a_ledger_of_a_newer_palorad_is_not_judged(settings: Settings) -> None:
    with written(settings.layout) as ledger:
        ledger.execute("UPDATE _sqlite_migrations SET name = 'schema_2'")
    report = without_servers(settings)
    assert report.code == UNCHECKED
    assert any("a newer schema (schema_2)" in line for line in report.unchecked)


def test_a_file_that_is_no_database_is_a_finding(settings: Settings) -> None:
    settings.layout.ledger.write_bytes(b"not a database at all" * 500)
    report = without_servers(settings)
    assert report.code == FOUND
    assert "not a database" in report.findings[0].line


def test_a_transaction_that_a_crash_left_open_is_undone_first(
    settings: Settings, tmp_path: Path
) -> None:
    """Killed in the middle of a commit: the journal beside the ledger has to be rolled back."""
    path = settings.layout.ledger
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA cache_spill = 1")
    writer.execute("PRAGMA cache_size = 1")
    writer.execute("BEGIN IMMEDIATE")
    for number in range(400):
        writer.execute("INSERT INTO meta VALUES (?, ?)", (f"k{number}", "x" * 900))
    journal = path.with_name(f"{path.name}-journal")
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / path.name).write_bytes(path.read_bytes())
    (torn / journal.name).write_bytes(journal.read_bytes())
    writer.execute("ROLLBACK")
    writer.close()
    for file in torn.iterdir():
        (path.parent / file.name).write_bytes(file.read_bytes())
    with pytest.raises(LedgerUnusable, match="which the daemon undoes when it starts"):
        Ledger.open(path, readonly=True)
    report = without_servers(settings)
    assert report.lines == ()
