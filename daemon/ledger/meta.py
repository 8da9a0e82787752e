"""Named values, such as the base's hash or whether work is paused."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from daemon.ledger.database import Database

BASE: Final = "base_sha256"


class Meta:
    """Small values kept by name."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, key: str) -> str | None:
        """A named value, such as the base's hash or whether work is paused."""
        found = self._db.one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if found is None else str(found)

    def remember(self, key: str, value: str) -> None:
        """Keep a named value, such as the hash of the base."""
        if self._db.meta(key) != value:
            with self._db.write("remember"):
                self._db.set_meta(key, value)

    # --- pausing -------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether a person has asked that nothing new is started."""
        return self._db.meta("paused") == "yes"

    def pause(self, paused: bool, because: str, now: datetime) -> None:
        """Pause or resume: while paused, nothing new is started."""
        with self._db.write("pause"):
            self._db.set_meta("paused", "yes" if paused else "no")
            kind = "paused" if paused else "resumed"
            self._db.event(f"work.{kind}", "daemon", {"because": because}, now)
