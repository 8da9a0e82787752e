"""The chain of events: what happened, in order, each with the hash of all before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from daemon.ledger.chain import GENESIS, chained, salted
from daemon.ledger.database import Database, SqlRow, unstamp
from daemon.ledger.records import Event
from policies.errors import LedgerUnusable

_EVENT: Final = "seq, at, kind, subject, payload, prev_hash, hash"


class Events:
    """Reads the chain and appends to it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def record(self, kind: str, subject: str, payload: Mapping[str, Any], now: datetime) -> None:
        """Append one event by itself."""
        with self._db.write("record"):
            self._db.event(kind, subject, payload, now)

    def latest(self, limit: int = 100, subject: str | None = None) -> tuple[Event, ...]:
        """The latest events, the newest first."""
        where = "" if subject is None else "WHERE subject = :subject"
        rows = self._db.rows(
            f"SELECT {_EVENT} FROM events {where} ORDER BY seq DESC LIMIT :limit",
            {"subject": subject, "limit": limit},
        )
        return tuple(_event_of(row) for row in rows)

    def verify_chain(self) -> int:
        """How many events there are; raises `LedgerUnusable` naming the first that was altered.

        What an event says may have been erased with a retracted fact; that it happened stands.
        """
        prev, expected = GENESIS, 1
        for row in self._db.rows(f"SELECT {_EVENT}, salt, digest FROM events ORDER BY seq"):
            seq, at, kind, subject, body, before, chain, salt, digest = row
            erased = not body and not salt
            if (
                seq != expected
                or before != prev
                or not (erased or digest == salted(salt, body))
                or chain != chained(prev, seq, at, kind, subject, digest)
            ):
                raise LedgerUnusable(f"{self._db.path}: event {expected} is not what was written")
            prev, expected = chain, seq + 1
        return expected - 1


def _event_of(row: SqlRow) -> Event:
    return Event(
        seq=row[0],
        at=unstamp(row[1]),
        kind=row[2],
        subject=row[3],
        payload=json.loads(row[4]) if row[4] else {"erased": True},
        prev_hash=row[5],
        hash=row[6],
    )
