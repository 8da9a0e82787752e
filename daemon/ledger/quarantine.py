"""Lines that were not admitted, and those that come out of quarantine later."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from daemon.ledger.admission import KEPT, Admission
from daemon.ledger.bad_lines import LAST_LINE
from daemon.ledger.database import Database
from daemon.ledger.records import Admitted
from policies.errors import NotFound
from policies.facts.supersession import Ruling
from policies.records import Fact, Quarantined


class Quarantine:
    """Bad lines by batch."""

    def __init__(self, db: Database, admission: Admission) -> None:
        self._db = db
        self._admission = admission

    def lines(self, batch_id: str, limit: int = 1000, first: int = 1) -> tuple[Quarantined, ...]:
        """The lines of a batch from `first` on that were not admitted and are kept in words."""
        rows = self._db.rows(
            "SELECT line, kind, reason, text FROM quarantine WHERE batch ="
            " (SELECT seq FROM batches WHERE id = ?) AND line >= ? ORDER BY line LIMIT ?",
            (batch_id, first, limit),
        )
        return tuple(
            Quarantined(line=line, kind=kind, reason=reason, text=text)
            for line, kind, reason, text in rows
        )

    def line_numbers(self, batch_id: str, first: int = 1, last: int = LAST_LINE) -> set[int]:
        """The numbers of a batch's lines that are in quarantine, from `first` to `last`."""
        return set(self._admission.bad_lines.kinds(self._seq(batch_id), first, last))

    def kind(self, batch_id: str, line: int) -> str | None:
        """Why a line of a batch is in quarantine, in a word; None where it is not."""
        return self._admission.bad_lines.kinds(self._seq(batch_id), line, line).get(line)

    def last(self, batch_id: str) -> int:
        """The number of a batch's last line in quarantine; 0 where there is none."""
        return self._admission.bad_lines.last(self._seq(batch_id))

    def numbered(self, batch_id: str) -> dict[str, int]:
        """How many further lines of each kind are known by their numbers only."""
        return self._admission.bad_lines.numbered(self._seq(batch_id))

    def withdraw(self, batch_id: str, line: int) -> None:
        """The lines from this one on leave quarantine: a later batch has them again."""
        with self._db.write("withdraw"):
            self._admission.bad_lines.take_back(batch_id, line)

    def correct(self, batch_id: str, line: int, by: str, now: datetime) -> None:
        """A line leaves quarantine: batch `by` has it as a person has corrected it.

        Raises `NotFound` where it is not in quarantine.
        """
        with self._db.write("correct"):
            if not self._admission.bad_lines.take_out(self._seq(batch_id), [line]):
                raise NotFound(f"batch {batch_id[:12]} has no line {line} in quarantine")
            self._db.event("line.corrected", batch_id, {"line": line, "by": by}, now)

    def _seq(self, batch_id: str) -> int:
        return int(self._db.one("SELECT seq FROM batches WHERE id = ?", (batch_id,)) or 0)

    def readmit(
        self,
        batch_id: str,
        lines: Sequence[int],
        admitted: Sequence[tuple[Fact, Ruling]],
        quarantined: Sequence[Quarantined],
        now: datetime,
        *,
        kept: int = KEPT,
    ) -> Admitted:
        """Take lines of a whole batch out of quarantine; those in `quarantined` go back into it.

        What `admitted` holds is counted as accepted from now on and may be planned.
        """
        with self._db.write("readmit"):
            row = self._admission.row_of(batch_id)
            if row is None or not row[1]:
                raise NotFound(f"no batch {batch_id} that has been admitted")
            present = self._admission.bad_lines.take_out(row[0], lines)
            self._admission.append(row[0], admitted, quarantined, now, kept)
            counts = {
                "lines": present,
                "still_bad": len(quarantined),
                "digest": self._admission.digest(row[0]),
            }
            self._db.event("batch.readmitted", batch_id, counts, now)
        return self._admission.admitted(batch_id)
