"""Where each feed was read up to."""

from __future__ import annotations

from datetime import datetime

from daemon.ledger.database import Database, unstamp


class FeedCursors:
    """Cursors by feed."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def cursor(self, name: str) -> str | None:
        """Where the feed was read up to, as its reader wrote it."""
        found = self._db.one("SELECT cursor FROM feeds WHERE name = ?", (name,))
        return None if found is None else str(found)

    def polled(self) -> dict[str, datetime]:
        """When each feed last gave something."""
        rows = self._db.rows("SELECT name, polled_at FROM feeds ORDER BY name")
        return {name: unstamp(at) for name, at in rows}

    def set_cursor(self, name: str, cursor: str, now: datetime) -> None:
        """Remember where a feed stands although it brought no batch."""
        with self._db.write("set_feed_cursor"):
            self.put(name, cursor, now)

    def put(self, name: str, cursor: str, now: datetime) -> None:
        """Within a change: remember where a feed stands."""
        self._db.do(
            "INSERT OR REPLACE INTO feeds VALUES (?, ?, ?)", (name, cursor, self._db.at(now))
        )
