"""The chain of events: what happened, in order, each with the hash of all before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from daemon.ledger.chain import GENESIS, chained, salted
from daemon.ledger.database import Database, SqlRow, unstamp
from daemon.ledger.records import Event
from policies.errors import LedgerUnusable
from policies.notifications import Notification

# What tells a lawful erasure from a forgery; these events are never erased themselves.
EVENTS_ERASED: Final = "events.erased"
FACT_ERASED: Final = "fact.erased"
ARCHIVE_ERASED: Final = "archive.erased"
ERASURES: Final = (EVENTS_ERASED, FACT_ERASED, ARCHIVE_ERASED)
_AT_ONCE: Final = 1000
EVENT_COLUMNS: Final = "seq, at, kind, subject, payload, prev_hash, hash"


class Events:
    """Reads the chain and appends to it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def record(
        self,
        kind: str,
        subject: str,
        payload: Mapping[str, Any],
        now: datetime,
        *,
        told: Notification | None = None,
    ) -> None:
        """Append one event by itself, and put it into the outbox if it is to be told."""
        with self._db.write("record"):
            self._db.event(kind, subject, payload, now, told=told)

    def latest(self, limit: int = 100, subject: str | None = None) -> tuple[Event, ...]:
        """The latest events, the newest first."""
        where = "" if subject is None else "WHERE subject = :subject"
        rows = self._db.rows(
            f"SELECT {EVENT_COLUMNS} FROM events {where} ORDER BY seq DESC LIMIT :limit",
            {"subject": subject, "limit": limit},
        )
        return tuple(event_of(row) for row in rows)

    def archive_erased(self, batch_id: str, sha256: str, now: datetime) -> None:
        """Retracted lines leave the archive of a batch, whose bytes have this hash afterwards."""
        self.record(ARCHIVE_ERASED, batch_id, {"sha256": sha256}, now)

    def head(self) -> tuple[int, str]:
        """Number and hash of the newest event; 0 and `GENESIS` where there is none."""
        row = self._db.row("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")
        return (0, GENESIS) if row is None else (int(row[0]), str(row[1]))

    def hash_of(self, seq: int) -> str | None:
        """The hash of one event, `GENESIS` of number 0; None where there is no such event."""
        found = (
            GENESIS if seq == 0 else self._db.one("SELECT hash FROM events WHERE seq = ?", (seq,))
        )
        return None if found is None else str(found)

    def of_kinds(
        self, *kinds: str, subject: str | None = None
    ) -> Iterator[tuple[int, str, str, dict[str, Any]]]:
        """Number, kind, subject and payload of all events of some kinds (and one subject), in
        order; an erased payload is empty."""
        where = f"kind IN ({', '.join('?' * len(kinds))})"
        about = () if subject is None else (subject,)
        yield from self._said(f"{where}{' AND subject = ?' * len(about)}", (*kinds, *about))

    def of_plans(self) -> Iterator[tuple[int, str, str, dict[str, Any]]]:
        """The same of all states that plans came to."""
        yield from self._said("kind GLOB 'plan.*'", ())

    def _said(
        self, where: str, parameters: Sequence[Any]
    ) -> Iterator[tuple[int, str, str, dict[str, Any]]]:
        for seq, kind, subject, payload in self._db.rows(
            f"SELECT seq, kind, subject, payload FROM events WHERE {where} ORDER BY seq", parameters
        ):
            yield seq, kind, subject, json.loads(payload) if payload else {}

    def was_removed(self, subject: str) -> bool:
        """Whether retention has removed something stored, such as "revision:palora-000001-…"."""
        return any(True for _ in self.of_kinds("removed", subject=subject))

    def verify_chain(self) -> int:
        """How many events there are; raises `LedgerUnusable` naming the first that was altered."""
        for problem in self.broken():
            if problem is not None:
                raise LedgerUnusable(f"{self._db.path}: {problem}")
        return self.head()[0]

    def broken(self, after: int = 0) -> Iterator[str | None]:
        """What is wrong with the events behind number `after`; pauses by None after each piece.

        What an event says may have been erased with a retracted fact, if a later event names it;
        that it happened stands.
        """
        lawful = {
            number
            for _, _, _, said in self.of_kinds(EVENTS_ERASED)
            for number in said.get("events", ())
        }
        last, prev = after, self.hash_of(after)
        while rows := self._db.rows(
            f"SELECT {EVENT_COLUMNS}, salt, digest FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
            (last, _AT_ONCE),
        ):
            for row in rows:
                seq, at, kind, subject, body, before, chain, salt, digest = row
                if seq != last + 1:
                    yield f"event {last + 1} is gone"
                erased = not body and not salt
                if erased and seq not in lawful:
                    yield f"what event {seq} ({kind}) said is gone without a retraction"
                elif (
                    before != prev
                    or not (erased or digest == salted(salt, body))
                    or chain != chained(before, seq, at, kind, subject, digest)
                ):
                    yield f"event {seq} is not what was written"
                last, prev = seq, chain
            yield None


def event_of(row: SqlRow) -> Event:
    """An event from a row of `EVENT_COLUMNS`."""
    return Event(
        seq=row[0],
        at=unstamp(row[1]),
        kind=row[2],
        subject=row[3],
        payload=json.loads(row[4]) if row[4] else {"erased": True},
        prev_hash=row[5],
        hash=row[6],
    )
