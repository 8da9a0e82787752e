"""Troubles that were told and have not ended: what a restarted daemon must know of them."""

from __future__ import annotations

from datetime import datetime

from daemon.ledger.database import Database, unstamp
from policies.notifications import Notification


class Troubles:
    """Begin, reminder and end of a trouble, each an event; `key` tells one trouble from another.

    The line itself stands in the event alone, from where a retraction can erase it.
    """

    def __init__(self, db: Database) -> None:
        self._db = db

    def open(self) -> dict[str, datetime]:
        """Since when the troubles last that were told, by key."""
        rows = self._db.rows("SELECT key, began_at FROM troubles ORDER BY began_at")
        return {key: unstamp(at) for key, at in rows}

    def began(self, key: str, line: str, now: datetime) -> None:
        """There is trouble; told before is success."""
        with self._db.write("notify:trouble"):
            if self._db.do(
                "INSERT INTO troubles VALUES (?, ?) ON CONFLICT DO NOTHING",
                (key, self._db.at(now)),
            ):
                self._tell(Notification.TROUBLE_BEGAN, key, line, now)

    def lasts(self, key: str, line: str, now: datetime) -> None:
        """It lasts."""
        with self._db.write("notify:reminder"):
            self._tell(Notification.TROUBLE_LASTS, key, line, now)

    def ended(self, key: str, line: str, now: datetime) -> None:
        """It is over; told before is success."""
        with self._db.write("notify:ended"):
            if self._db.do("DELETE FROM troubles WHERE key = ?", (key,)):
                self._tell(Notification.TROUBLE_ENDED, key, line, now)

    def _tell(self, kind: Notification, key: str, line: str, now: datetime) -> None:
        self._db.event(kind.value, f"trouble:{key}", {"line": line} if line else {}, now, told=kind)
