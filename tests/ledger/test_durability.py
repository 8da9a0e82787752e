"""What makes a commit durable is in force on every connection that writes."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from daemon.ledger.ledger import Ledger
from policies.records import Batch, Fact
from tests.support.admitting import admit

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
EXTRA = 3


class Watched(sqlite3.Connection):
    """Remembers with which pragmas it first wrote."""

    made: ClassVar[list[Watched]] = []

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.named = str(arguments[0])
        self.in_force: tuple[str, int] | None = None
        self.made.append(self)
        self.set_authorizer(self._asked)
        self.writes = False

    def _asked(self, action: int, table: str | None, *_: object) -> int:
        changing = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)
        if action in changing or (action == sqlite3.SQLITE_ATTACH):
            self.writes = True
        return sqlite3.SQLITE_OK

    def close(self) -> None:
        self.set_authorizer(None)
        (mode,) = self.execute("PRAGMA journal_mode").fetchone()
        (synchronous,) = self.execute("PRAGMA synchronous").fetchone()
        self.in_force = mode, synchronous
        super().close()


def test_every_connection_that_writes_syncs_the_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With FULL, a journal whose removal was not synced comes back and undoes the commit."""
    monkeypatch.setattr(Watched, "made", [])
    connect = sqlite3.connect

    def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return connect(*arguments, **{"factory": Watched, **options})

    monkeypatch.setattr(sqlite3, "connect", watched)
    path = tmp_path / "ledger.db"
    for _ in range(2):  # made, and opened again
        with Ledger.open(path) as ledger:
            ledger.revisions.ensure_base("base", NOW)
            batch = Batch(id="b", name="b", received_at=NOW, source="x", accepted=0, quarantined=0)
            admit(ledger, batch, [Fact(id="f", prompt="a?", answer="b")])
            ledger.meta.pause(True, "a test", NOW)
            ledger.erasure.compact()
    with Ledger.open(path, readonly=True) as reader:
        assert reader.facts.find()
    writers = [made for made in Watched.made if made.writes]
    assert len(writers) >= 3
    assert {made.in_force for made in writers} == {("delete", EXTRA)}
    assert {made.in_force for made in Watched.made if made.named == str(path)} == {
        ("delete", EXTRA)
    }


def test_a_ledger_that_another_program_put_into_wal_mode_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.open(path).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA journal_mode=WAL")
    raw.close()
    with Ledger.open(path) as ledger:
        assert ledger.db.one("PRAGMA journal_mode") == "delete"
