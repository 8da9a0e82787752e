"""Stored files that retention has removed: their absence is meant."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from daemon.ledger.database import Database
from policies.retention import SHORT, Removal, StoredKind

STORED: Final = frozenset(
    {
        StoredKind.ARCHIVE,
        StoredKind.ADAPTER,
        StoredKind.REVISION,
        StoredKind.ANSWERS,
        StoredKind.WORK,
    }
)


class Removals:
    """What was removed, when and why; written before the files go."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def record(self, removals: Sequence[Removal], now: datetime) -> None:
        """These items go from now on. Recorded already is success.

        A receipt has the name of a file, which may tell of a fact: only payloads can be erased, so
        such names stand in no subject and in no table.
        """
        stored = [one for one in removals if one.kind in STORED]
        others = [one for one in removals if one.kind not in STORED]
        with self._db.write("remove"):
            at = self._db.at(now)
            self._db.do_all(
                "INSERT INTO removed (kind, name, because, removed_at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (kind, name) DO UPDATE SET because = excluded.because",
                [(one.kind.value, one.name, one.because, at) for one in stored],
            )
            for one in stored:
                said = {"because": one.because, "bytes": one.bytes}
                self._db.event("removed", f"{one.kind.value}:{one.name}", said, now)
            if others:
                items = [f"{one.name}: {one.because}" for one in others]
                self._db.event("removed", "files", {"items": items}, now)

    def has(self, kind: StoredKind, name: str) -> bool:
        """Whether an item was removed and has not been published again since."""
        found = self._db.one(
            "SELECT 1 FROM removed WHERE kind = ? AND name = ?", (kind.value, name)
        )
        return bool(found)

    def published(self, adapter: str, revision: str) -> None:
        """Within a change: the same bytes were published once more, so they are here again."""
        self._db.do_all(
            "DELETE FROM removed WHERE kind = ? AND name = ?",
            [(StoredKind.ADAPTER.value, adapter[:SHORT]), (StoredKind.REVISION.value, revision)],
        )

    @property
    def head(self) -> int:
        """The number of the last event: while it stands, so does what was decided from it."""
        return int(self._db.one("SELECT coalesce(max(seq), 0) FROM events"))
