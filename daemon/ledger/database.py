"""The ledger's one connection: transactions, named values, and the end of the chain of events."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

import sqlite_utils

from daemon.base import faults
from daemon.ledger import snapshot
from daemon.ledger.chain import GENESIS, chained, salted
from daemon.ledger.schema import SCHEMA, foreign, is_empty, migrations
from policies.errors import DiskFull, Inconsistent, LedgerBusy, LedgerDamaged, LedgerUnusable
from policies.notifications import Notification

SqlRow = tuple[Any, ...]
T = TypeVar("T")
BUSY_S: Final = 0.8
BEFORE: Final = ".before-"
# SQLite before 3.32 takes 999 parameters; one chunk of names stays below that.
_CHUNK: Final = 900
_LATEST: Final = (
    "SELECT max(at) FROM (SELECT (SELECT at FROM events ORDER BY seq DESC LIMIT 1) AS at"
    " UNION ALL SELECT (SELECT received_at FROM batches ORDER BY seq DESC LIMIT 1)"
    " UNION ALL SELECT (SELECT recorded_at FROM facts ORDER BY seq DESC LIMIT 1)"
    " UNION ALL SELECT max(polled_at) FROM feeds UNION ALL SELECT moved_at FROM target)"
)


def stamp(moment: datetime) -> str:
    """A moment as stored: UTC, sortable as text; raises `ValueError` without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("a moment without time zone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def unstamp(text: str) -> datetime:
    """A stored moment."""
    return datetime.fromisoformat(text)


class Database:
    """One connection; every change is one short transaction around a named step."""

    def __init__(self, db: sqlite_utils.Database, path: Path) -> None:
        self._db = db
        self.path = path
        self._latest: str | None = None
        self._counts: tuple[tuple[int, int], dict[str, Any]] = (0, 0), {}
        self.told: frozenset[Notification] = frozenset()

    @classmethod
    def open(cls, path: Path, readonly: bool = False) -> Self:
        """The ledger at `path`, made if it is to be written; raises `LedgerUnusable`."""
        try:
            db = sqlite_utils.Database(_connect(path, readonly))
            if found := foreign(db):
                db.close()
                raise LedgerUnusable(
                    f"{path}: a ledger of {found}, and this palorad reads {SCHEMA}: move the file "
                    "away to begin a new one, or use the palorad that wrote it"
                )
            if not readonly:
                _configure(db)
                _copy_before_migration(db, path)
                migrations.apply(db)
            elif migrations.pending(db):
                raise LedgerUnusable(f"{path}: an empty or older ledger; start the daemon once")
        except sqlite3.DatabaseError as error:
            raise translated(error, path) from error
        return cls(db, path)

    @classmethod
    def in_memory(cls, path: Path) -> Self:
        """An empty ledger in memory; its errors name `path`, where no file need be."""
        db = sqlite_utils.Database(memory=True)
        migrations.apply(db)
        return cls(db, path)

    @classmethod
    def over(cls, connection: sqlite3.Connection, path: Path) -> Self:
        """What a connection holds, to be read; errors name `path`."""
        return cls(sqlite_utils.Database(connection), path)

    def close(self) -> None:
        """End the connection."""
        self.connection.close()

    @property
    def version(self) -> tuple[int, int]:
        """Another one after each change, whoever made it."""
        return int(self.one("PRAGMA data_version")), self.connection.total_changes

    def counted(self, what: str, count: Callable[[], T]) -> T:
        """What `count` gives, once for each version of the ledger: for what walks over a table.

        What a change under way has written may still be undone: it is counted each time.
        """
        if self.connection.in_transaction:
            return count()
        version = self.version
        if self._counts[0] != version:
            self._counts = version, {}
        kept = self._counts[1]
        if what not in kept:
            kept[what] = count()
        return cast(T, kept[what])

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection itself, for pragmas and counts of changes."""
        return self._db.conn

    # --- reading and writing -------------------------------------------------------------------

    def rows(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[SqlRow]:
        """All rows of a query; raises palorad's own errors."""
        try:
            return cast(list[SqlRow], self.connection.execute(sql, parameters).fetchall())
        except sqlite3.DatabaseError as error:
            raise translated(error, self.path) from error
        except OverflowError:  # beyond 64 bits: no row has such a number
            return []

    def row(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> SqlRow | None:
        """The first row, if there is one."""
        rows = self.rows(sql, parameters)
        return rows[0] if rows else None

    def one(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Any:  # noqa: ANN401 - a column
        """The first column of the first row, if there is one."""
        row = self.row(sql, parameters)
        return None if row is None else row[0]

    def do(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> int:
        """Within a change: one statement; how many rows it changed."""
        return self.connection.execute(sql, parameters).rowcount

    def do_all(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Within a change: one statement for each row of parameters; how many rows changed."""
        return self.connection.executemany(sql, rows).rowcount if rows else 0

    def expect(self, done: int, expected: int, what: str) -> None:
        """Within a change: undo all of it, by `Inconsistent`, unless this many rows were meant."""
        if done != expected:
            raise Inconsistent(
                f"{self.path}: {what}: {done} rows instead of {expected}; nothing of the change "
                "was kept"
            )

    @contextmanager
    def write(self, name: str) -> Iterator[None]:
        """A change: one transaction, kept whole or not at all, with a fault point on each side."""
        faults.point(f"{name}:before")
        try:
            with self._db.atomic():
                yield
                faults.point(f"{name}:within")
        except sqlite3.DatabaseError as error:
            raise translated(error, self.path) from error
        faults.point(f"{name}:after")

    def at(self, now: datetime) -> str:
        """`now` as history stores it: never before what was stored last, whatever the clock says.

        What is compared with the calendar, or waited for, is stored as it is.
        """
        if self._latest is None:
            self._latest = self.one(_LATEST) or ""
        self._latest = max(self._latest, stamp(now))
        return self._latest

    # --- meta ----------------------------------------------------------------------------------

    def meta(self, key: str) -> str | None:
        """A named value, such as the base's hash or whether work is paused."""
        found = self.one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if found is None else str(found)

    def set_meta(self, key: str, value: str) -> None:
        """Within a change: keep a named value."""
        self.do("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    # --- events --------------------------------------------------------------------------------

    def event(
        self,
        kind: str,
        subject: str,
        payload: Mapping[str, Any],
        now: datetime,
        *,
        told: Notification | None = None,
    ) -> None:
        """Within a change: append one event to the chain, and to the outbox if it is to be told."""
        last = self.row("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")
        seq, prev = (last[0] + 1, last[1]) if last else (1, GENESIS)
        body = json.dumps(dict(payload), sort_keys=True, ensure_ascii=False, default=str)
        at, salt = self.at(now), secrets.token_hex(16)
        digest = salted(salt, body)
        chain = chained(prev, seq, at, kind, subject, digest)
        self.do(
            "INSERT INTO events (seq, at, kind, subject, payload, prev_hash, hash, salt, digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (seq, at, kind, subject, body, prev, chain, salt, digest),
        )
        if told in self.told or told is Notification.TEST:
            self.do("INSERT INTO outbox (event, type) VALUES (?, ?)", (seq, str(told)))


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    if readonly and not path.exists():
        raise LedgerUnusable(f"{path}: there is no ledger yet; start the daemon once")
    mode = "ro" if readonly else "rwc"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_S, cached_statements=256)


def _copy_before_migration(db: sqlite_utils.Database, path: Path) -> None:
    """Before its tables change, the ledger as it is stays beside it; an empty one has none."""
    if not is_empty(db) and (pending := migrations.pending(db)):
        snapshot.copy(db.conn, path.with_name(f"{path.name}{BEFORE}{pending[0].name}"))


def _configure(db: sqlite_utils.Database) -> None:
    make_durable(db.conn)
    db.execute("PRAGMA foreign_keys=ON")
    db.execute("PRAGMA cache_size=-65536")


def make_durable(connection: sqlite3.Connection) -> None:
    """What a connection needs before it writes: a commit that returned survives a power cut.

    docs/decisions/0010-a-rollback-journal.md says why.
    """
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA synchronous=EXTRA")


def translated(error: sqlite3.DatabaseError, path: Path) -> Exception:
    """What SQLite says as one of palorad's own errors, with what to do."""
    text = str(error)
    if "disk is full" in text or "disk I/O error" in text:
        return DiskFull(f"{path}: {text}; free some space; work resumes by itself")
    if "locked" in text or "busy" in text:
        return LedgerBusy(f"{path}: in use by another process for more than {BUSY_S} s")
    if "readonly" in text and path.with_name(f"{path.name}-journal").exists():
        return LedgerUnusable(
            f"{path}: a crash cut off a transaction, which the daemon undoes when it starts"
        )
    if isinstance(error, sqlite3.OperationalError):
        return LedgerUnusable(f"{path}: {text}")
    if isinstance(error, sqlite3.IntegrityError):
        return Inconsistent(f"{path}: {text}; nothing of the change was kept")
    return LedgerDamaged(f"{path}: {text}; restore it from a backup or move it away")


def chunks(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Pieces small enough for one statement."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def marks(values: Sequence[Any]) -> str:
    """A question mark for each value."""
    return ",".join("?" * len(values))
