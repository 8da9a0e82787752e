"""The ledger's connection, transactions and chain of events."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self, cast

from sqlite_utils import Database

from daemon.base import faults
from daemon.ledger.records import Event
from daemon.ledger.schema import GENESIS, chained, migrations, salted
from policies.errors import DiskFull, Inconsistent, LedgerBusy, LedgerUnusable

Row = tuple[Any, ...]
BUSY_S: Final = 0.8
_LATEST: Final = (
    "SELECT max(at) FROM (SELECT (SELECT at FROM events ORDER BY seq DESC LIMIT 1) AS at"
    " UNION ALL SELECT (SELECT received_at FROM batches ORDER BY seq DESC LIMIT 1)"
    " UNION ALL SELECT (SELECT recorded_at FROM facts ORDER BY seq DESC LIMIT 1)"
    " UNION ALL SELECT max(polled_at) FROM feeds UNION ALL SELECT moved_at FROM target)"
)
_EVENT: Final = "seq, at, kind, subject, payload, prev_hash, hash"


def stamp(moment: datetime) -> str:
    """A moment as stored: UTC, sortable as text; raises `ValueError` without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("a moment without time zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def unstamp(text: str) -> datetime:
    """A stored moment."""
    return datetime.fromisoformat(text)


class LedgerDb:
    """One connection; every change is one short transaction around a named step."""

    _latest: str | None = None

    def __init__(self, db: Database, path: Path) -> None:
        self._db = db
        self._path = path

    @classmethod
    def open(cls, path: Path, readonly: bool = False) -> Self:
        """The ledger at `path`, made and migrated when it is written; raises `LedgerUnusable`."""
        try:
            db = Database(_connect(path, readonly))
            if readonly:
                pending = migrations.pending(db)
                if pending:
                    raise LedgerUnusable(f"{path}: of another version; start the daemon once")
            else:
                _configure(db)
                migrations.apply(db)
        except sqlite3.DatabaseError as error:
            raise translated(error, path) from error
        return cls(db, path)

    def close(self) -> None:
        """End the connection."""
        self._db.conn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- reading and writing -------------------------------------------------------------------

    def _rows(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Row]:
        try:
            return cast(list[Row], self._db.conn.execute(sql, parameters).fetchall())
        except sqlite3.DatabaseError as error:
            raise translated(error, self._path) from error

    def _row(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Row | None:
        rows = self._rows(sql, parameters)
        return rows[0] if rows else None

    def _one(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Any:  # noqa: ANN401 - a column
        row = self._row(sql, parameters)
        return None if row is None else row[0]

    def _do(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> int:
        return self._db.conn.execute(sql, parameters).rowcount

    def _do_all(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        return self._db.conn.executemany(sql, rows).rowcount if rows else 0

    def _expect(self, done: int, expected: int, what: str) -> None:
        """Within a change: undo all of it, by `Inconsistent`, unless this many rows were meant."""
        if done != expected:
            raise Inconsistent(
                f"{self._path}: {what}: {done} rows instead of {expected}; nothing of the change "
                "was kept"
            )

    @contextmanager
    def _write(self, name: str) -> Iterator[None]:
        faults.point(f"{name}:before")
        try:
            with self._db.atomic():
                yield
                faults.point(f"{name}:within")
        except sqlite3.DatabaseError as error:
            raise translated(error, self._path) from error
        faults.point(f"{name}:after")

    def _at(self, now: datetime) -> str:
        """`now` as history stores it: never before what was stored last, whatever the clock says.

        What is compared with the calendar, or waited for, is stored as it is.
        """
        if self._latest is None:
            self._latest = self._one(_LATEST) or ""
        self._latest = max(self._latest, stamp(now))
        return self._latest

    # --- meta ----------------------------------------------------------------------------------

    def meta(self, key: str) -> str | None:
        """A named value, such as the base's hash or whether work is paused."""
        found = self._one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if found is None else str(found)

    def _set_meta(self, key: str, value: str) -> None:
        self._do("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    # --- events --------------------------------------------------------------------------------

    def record(self, kind: str, subject: str, payload: Mapping[str, Any], now: datetime) -> None:
        """Append one event by itself."""
        with self._write("record"):
            self._event(kind, subject, payload, now)

    def _event(self, kind: str, subject: str, payload: Mapping[str, Any], now: datetime) -> None:
        last = self._row("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")
        seq, prev = (last[0] + 1, last[1]) if last else (1, GENESIS)
        body = json.dumps(dict(payload), sort_keys=True, ensure_ascii=False, default=str)
        at, salt = self._at(now), secrets.token_hex(16)
        digest = salted(salt, body)
        chain = chained(prev, seq, at, kind, subject, digest)
        self._do(
            "INSERT INTO events (seq, at, kind, subject, payload, prev_hash, hash, salt, digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (seq, at, kind, subject, body, prev, chain, salt, digest),
        )

    def events(self, limit: int = 100, subject: str | None = None) -> tuple[Event, ...]:
        """The latest events, the newest first."""
        where = "" if subject is None else "WHERE subject = :subject"
        rows = self._rows(
            f"SELECT {_EVENT} FROM events {where} ORDER BY seq DESC LIMIT :limit",
            {"subject": subject, "limit": limit},
        )
        return tuple(_event_of(row) for row in rows)

    def verify_chain(self) -> int:
        """How many events there are; raises `LedgerUnusable` naming the first that was altered.

        What an event says may have been erased with a retracted fact; that it happened stands.
        """
        prev, expected = GENESIS, 1
        for row in self._rows(f"SELECT {_EVENT}, salt, digest FROM events ORDER BY seq"):
            seq, at, kind, subject, body, before, chain, salt, digest = row
            erased = not body and not salt
            if (
                seq != expected
                or before != prev
                or not (erased or digest == salted(salt, body))
                or chain != chained(prev, seq, at, kind, subject, digest)
            ):
                raise LedgerUnusable(f"{self._path}: event {expected} is not what was written")
            prev, expected = chain, seq + 1
        return expected - 1


def _event_of(row: Row) -> Event:
    return Event(
        seq=row[0],
        at=unstamp(row[1]),
        kind=row[2],
        subject=row[3],
        payload=json.loads(row[4]) if row[4] else {"erased": True},
        prev_hash=row[5],
        hash=row[6],
    )


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    if readonly and not path.exists():
        raise LedgerUnusable(f"{path}: there is no ledger yet; start the daemon once")
    mode = "ro" if readonly else "rwc"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_S, cached_statements=256)


def _configure(db: Database) -> None:
    # Before 3.51.3 a reset of the write-ahead log can corrupt the database.
    safe_wal = sqlite3.sqlite_version_info >= (3, 51, 3)
    db.execute(f"PRAGMA journal_mode={'WAL' if safe_wal else 'DELETE'}")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA foreign_keys=ON")
    db.execute("PRAGMA cache_size=-65536")


def translated(error: sqlite3.DatabaseError, path: Path) -> Exception:
    """What SQLite says as one of palorad's own errors, with what to do."""
    text = str(error)
    if "disk is full" in text or "disk I/O error" in text:
        return DiskFull(f"{path}: {text}; make room and it goes on by itself")
    if "locked" in text or "busy" in text:
        return LedgerBusy(f"{path}: in use by another process for more than {BUSY_S} s")
    if isinstance(error, sqlite3.OperationalError):
        return LedgerUnusable(f"{path}: {text}")
    if isinstance(error, sqlite3.IntegrityError):
        return Inconsistent(f"{path}: {text}; nothing of the change was kept")
    return LedgerUnusable(f"{path}: {text}; restore it from a backup or move it away")
