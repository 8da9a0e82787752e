"""Reads what a verification compares: whole tables, piece by piece, as they are stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

from daemon.ledger.chain import row_digest
from daemon.ledger.database import Database, SqlRow
from daemon.ledger.fact_rows import LASTING

_AT_ONCE: Final = 1000


class FactRow(NamedTuple):
    """One fact: `digest` was taken when it was stored, `same` says whether it still fits, `erased`
    whether its text has gone."""

    seq: int
    id: str
    batch: int
    answer: str
    digest: bytes
    same: bool
    erased: bool


class BatchRow(NamedTuple):
    """One batch with the digest of its facts."""

    seq: int
    id: str
    name: str
    complete: bool
    digest: str


class Audit:
    """Reading only."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def damage(self, *, quick: bool) -> tuple[str, ...]:
        """What SQLite's own check finds, at most 20 lines."""
        pragma = "quick_check" if quick else "integrity_check"
        lines = [str(line) for (line,) in self._db.rows(f"PRAGMA {pragma}(20)")]
        return tuple(line for line in lines if line != "ok")

    def orphans(self) -> tuple[str, ...]:
        """Rows that name a row of another table that is not there."""
        return tuple(
            f"row {row} of {table} names a row of {parent} that is not there"
            for table, row, parent, _ in self._db.rows("PRAGMA foreign_key_check")
        )

    @property
    def pages(self) -> int:
        """How many pages the database has."""
        return int(self._db.one("PRAGMA page_count"))

    def facts(self) -> Iterator[list[FactRow]]:
        """All facts in the order of their coming, a piece at a time."""
        last = 0
        while rows := self._db.rows(
            f"SELECT {LASTING}, salt, digest FROM facts WHERE seq > ? ORDER BY seq LIMIT ?",
            (last, _AT_ONCE),
        ):
            yield [_fact_row(row) for row in rows]
            last = rows[-1][0]

    def batches(self) -> Iterator[BatchRow]:
        """All batches in the order of their coming."""
        for seq, identity, name, complete, digest in self._db.rows(
            "SELECT seq, id, name, complete, digest FROM batches ORDER BY seq"
        ):
            yield BatchRow(seq, identity, name, bool(complete), digest)

    def target(self) -> tuple[int, str] | None:
        """Number of the target revision, and why it is the target."""
        row = self._db.row("SELECT number, because FROM target")
        return None if row is None else (int(row[0]), str(row[1]))

    def plan_states(self) -> Iterator[tuple[int, str]]:
        """The state of every plan."""
        yield from self._db.rows("SELECT id, state FROM plans ORDER BY id")

    def outcomes(self) -> Iterator[tuple[int, str]]:
        """The outcome of the verdict on every plan that has one."""
        for plan, body in self._db.rows("SELECT plan, body FROM verdicts ORDER BY plan"):
            yield plan, str(json.loads(body).get("outcome"))


def _fact_row(row: SqlRow) -> FactRow:
    *values, salt, digest = row
    return FactRow(
        seq=values[0],
        id=values[1],
        batch=values[3],
        answer=values[5],
        digest=digest,
        same=row_digest(salt, values) == digest,
        erased=not salt,
    )
