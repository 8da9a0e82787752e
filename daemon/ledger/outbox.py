"""The outbox: notifications that a receiver has not taken yet, each for one event."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final

from daemon.ledger.database import Database
from daemon.ledger.events import EVENT_COLUMNS, event_of
from daemon.ledger.records import Outgoing
from policies.notifications import Notification

_WAITING: Final = "dead = 0"
_DEAD: Final = "dead = 1"


class Outbox:
    """Rows are put here by `Database.event`, in the transaction of the event that they tell."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def tell(self, kinds: Collection[Notification]) -> None:
        """From now on events of these kinds are put into the outbox; of no others."""
        self._db.told = frozenset(kinds)

    def test(self, now: datetime) -> int:
        """Put a notification into the outbox that tells nothing; the number of its event."""
        with self._db.write("notify:test"):
            told = Notification.TEST
            self._db.event(told.value, "daemon", {}, now, told=told)
        return int(self._db.one("SELECT max(seq) FROM events"))

    # --- reading -------------------------------------------------------------------------------

    def waiting(self, limit: int) -> tuple[Outgoing, ...]:
        """Those to be delivered, in order of their events."""
        return self._rows(_WAITING, limit)

    def dead(self, limit: int) -> tuple[Outgoing, ...]:
        """Those that were given up, in order of their events."""
        return self._rows(_DEAD, limit)

    def counts(self) -> tuple[int, int]:
        """How many wait, and how many were given up."""
        row = self._db.row(
            "SELECT count(*) - coalesce(sum(dead), 0), coalesce(sum(dead), 0) FROM outbox"
        )
        return (0, 0) if row is None else (int(row[0]), int(row[1]))

    def holds(self, event: int) -> bool:
        """Whether the notification of this event is not delivered yet."""
        return self._db.one("SELECT 1 FROM outbox WHERE event = ?", (event,)) is not None

    def _rows(self, where: str, limit: int) -> tuple[Outgoing, ...]:
        rows = self._db.rows(
            f"SELECT o.type, o.attempts, o.error, {EVENT_COLUMNS} FROM outbox o"
            f" JOIN events ON seq = o.event WHERE {where} ORDER BY o.event LIMIT ?",
            (limit,),
        )
        return tuple(
            Outgoing(
                type=Notification(kind), attempts=attempts, error=error, event=event_of(tuple(rest))
            )
            for kind, attempts, error, *rest in rows
        )

    # --- delivering ----------------------------------------------------------------------------

    def delivered(self, event: int) -> None:
        """The receiver has taken it."""
        with self._db.write("notify:delivered"):
            self._db.do("DELETE FROM outbox WHERE event = ?", (event,))

    def undelivered(self, event: int, error: str, waited_s: float, dead_after_s: float) -> int:
        """The receiver has not taken it; all have waited `waited_s` longer. How many are given up
        because they have waited `dead_after_s` and the receiver was asked to take them, or would
        have been, had not earlier ones stood before them."""
        with self._db.write("notify:undelivered"):
            self._db.do(
                "UPDATE outbox SET attempts = attempts + 1, error = ? WHERE event = ?",
                (error, event),
            )
            self._db.do(f"UPDATE outbox SET waited_s = waited_s + ? WHERE {_WAITING}", (waited_s,))
            return self._db.do(
                f"UPDATE outbox SET dead = 1 WHERE {_WAITING} AND waited_s >= ?", (dead_after_s,)
            )

    def retry(self) -> int:
        """Those that were given up wait again; how many."""
        with self._db.write("notify:retry"):
            return self._db.do(f"UPDATE outbox SET dead = 0, waited_s = 0 WHERE {_DEAD}")

    def discard(self) -> int:
        """Those that were given up are forgotten; how many. The history keeps their events."""
        with self._db.write("notify:discard"):
            return self._db.do(f"DELETE FROM outbox WHERE {_DEAD}")
