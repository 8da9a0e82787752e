"""Before its tables change, a ledger is copied as it is."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlite_utils

from daemon.ledger import database, schema, snapshot
from daemon.ledger.ledger import Ledger
from policies.errors import LedgerUnusable

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with Ledger.open(path) as made:
        made.revisions.ensure_base("base", NOW)
        made.meta.pause(True, "before", NOW)
    return path


def renewed(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """The next palorad has another table."""
    migrations = sqlite_utils.Migrations("palorad")
    migrations(name="schema_1")(schema._schema)
    migrations(name="schema_2")(lambda db: db.execute(change))
    monkeypatch.setattr(schema, "SCHEMAS", ("schema_1", "schema_2"))
    for module in (schema, database):
        monkeypatch.setattr(module, "migrations", migrations)


def test_a_migration_leaves_the_former_ledger_beside(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        renewed(later, "CREATE TABLE further (x TEXT)")
        with pytest.raises(LedgerUnusable, match="start the daemon once"):
            Ledger.open(ledger, readonly=True)
        with Ledger.open(ledger) as opened:
            assert opened.db.rows("SELECT * FROM further") == []
            assert opened.meta.paused
    before = ledger.with_name("ledger.db.before-schema_2")
    with Ledger.open(before, readonly=True) as opened:
        assert opened.meta.paused
        assert opened.events.verify_chain() == 1


def test_a_migration_that_fails_leaves_the_ledger_and_its_copy(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        renewed(later, "CREATE TABLE meta (x TEXT)")
        with pytest.raises(LedgerUnusable):
            Ledger.open(ledger)
    for path in (ledger, ledger.with_name("ledger.db.before-schema_2")):
        with Ledger.open(path, readonly=True) as opened:
            assert opened.meta.paused


def test_no_copy_is_made_where_no_table_changes(ledger: Path) -> None:
    Ledger.open(ledger).close()
    assert [path.name for path in ledger.parent.iterdir()] == ["ledger.db"]


def test_a_copy_is_whole_though_the_writer_goes_on(ledger: Path, tmp_path: Path) -> None:
    """Each piece gives the writer its turn; one that never rests is waited for no longer."""
    written, copied = 0, tmp_path / "copy.db"
    time = 0.0
    with Ledger.open(ledger) as writer:
        writer.db.connection.execute("CREATE TABLE filler AS SELECT randomblob(9000000) AS x")
        writer.db.connection.commit()

        def sleep(_seconds: float) -> None:
            nonlocal written, time
            written, time = written + 1, time + 1.0
            writer.meta.pause(True, f"while it is copied: {written}", NOW)

        source = sqlite3.connect(ledger)
        snapshot.copy(source, copied, clock=lambda: time, sleep=sleep)
        source.close()
        events = writer.events.verify_chain()
    assert written >= 20
    assert snapshot.damage(copied) == ""
    with Ledger.open(copied, readonly=True) as copy:
        assert copy.events.verify_chain() == events


def test_damage_within_a_file_is_found(ledger: Path) -> None:
    data = bytearray(ledger.read_bytes())
    data[8192:12288] = bytes(4096)
    ledger.write_bytes(data)
    assert snapshot.damage(ledger)
