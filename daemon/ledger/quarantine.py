"""Lines that were not admitted, and those that come out of quarantine later."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from daemon.ledger.admission import Admission
from daemon.ledger.database import Database, chunks, marks
from daemon.ledger.records import Admitted
from policies.errors import NotFound
from policies.facts.supersession import Ruling
from policies.records import Fact, Quarantined

LAST_LINE: Final = 2**63 - 1


class Quarantine:
    """Bad lines by batch."""

    def __init__(self, db: Database, admission: Admission) -> None:
        self._db = db
        self._admission = admission

    def lines(self, batch_id: str, limit: int = 1000) -> tuple[Quarantined, ...]:
        """The lines of a batch that were not admitted, in their order."""
        rows = self._db.rows(
            "SELECT line, kind, reason, text FROM quarantine WHERE batch ="
            " (SELECT seq FROM batches WHERE id = ?) ORDER BY line LIMIT ?",
            (batch_id, limit),
        )
        return tuple(
            Quarantined(line=line, kind=kind, reason=reason, text=text)
            for line, kind, reason, text in rows
        )

    def line_numbers(self, batch_id: str, first: int = 1, last: int = LAST_LINE) -> set[int]:
        """The numbers of a batch's lines that are in quarantine, from `first` to `last`."""
        rows = self._db.rows(
            "SELECT line FROM quarantine WHERE batch = (SELECT seq FROM batches WHERE id = ?)"
            " AND line BETWEEN ? AND ?",
            (batch_id, first, last),
        )
        return {int(line) for (line,) in rows}

    def readmit(
        self,
        batch_id: str,
        lines: Sequence[int],
        admitted: Sequence[tuple[Fact, Ruling]],
        quarantined: Sequence[Quarantined],
        now: datetime,
    ) -> Admitted:
        """Take lines of a whole batch out of quarantine; those in `quarantined` go back into it.

        What `admitted` holds is counted as accepted from now on and may be planned.
        """
        with self._db.write("readmit"):
            row = self._admission.row_of(batch_id)
            if row is None or not row[1]:
                raise NotFound(f"no batch {batch_id} that has been admitted")
            present = [
                kind
                for chunk in chunks([str(line) for line in lines])
                for (kind,) in self._db.rows(
                    f"SELECT kind FROM quarantine WHERE batch = ? AND line IN ({marks(chunk)})",
                    (row[0], *chunk),
                )
            ]
            for chunk in chunks([str(line) for line in lines]):
                self._db.do(
                    f"DELETE FROM quarantine WHERE batch = ? AND line IN ({marks(chunk)})",
                    (row[0], *chunk),
                )
            clashes = sum(kind in ("conflict", "ask") for kind in present)
            self._db.do(
                "UPDATE batches SET quarantined = quarantined - ?, conflicts = conflicts - ?"
                " WHERE seq = ?",
                (len(present), clashes, row[0]),
            )
            self._admission.append(row[0], admitted, quarantined, now)
            counts = {
                "lines": len(present),
                "still_bad": len(quarantined),
                "digest": self._admission.digest(row[0]),
            }
            self._db.event("batch.readmitted", batch_id, counts, now)
        return self._admission.admitted(batch_id)
