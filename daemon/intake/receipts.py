"""The receipt beside a drop: what became of it, line by line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from adapters import files
from daemon.intake.inbox import receipt_path
from daemon.ledger.ledger import Ledger
from policies.records import Batch, Quarantined, Record

LISTED: Final = 100


class QuarantinedLine(Record):
    """One quarantined line as the receipt tells it."""

    line: int
    kind: str
    reason: str


class Receipt(Record):
    """What became of one drop. `accepted + quarantined` is the number of lines that are not blank.

    `duplicates` (already known) are among the accepted, `conflicts` among the
    quarantined. `state` is where the batch stands; `not_learnt` names facts that the live
    revision does not answer after learning. `error` refuses the file as a whole.
    """

    file: str
    batch: str | None = None
    received_at: datetime
    accepted: int = 0
    quarantined: int = 0
    duplicates: int = 0
    conflicts: int = 0
    already_known: bool = False
    state: str = "waiting"
    error: str | None = None
    bad_lines: tuple[QuarantinedLine, ...] = Field(default=(), max_length=LISTED)
    bad_lines_left_out: int = 0
    not_learnt: tuple[str, ...] = ()
    signature: str | None = None

    @property
    def taken(self) -> bool:
        """Whether anything of the drop was accepted."""
        return self.error is None and (self.accepted > 0 or self.already_known)


def bad_lines(found: Sequence[Quarantined]) -> tuple[QuarantinedLine, ...]:
    """Quarantined lines without their text."""
    return tuple(QuarantinedLine(line=q.line, kind=q.kind, reason=q.reason) for q in found)


def receipt_of(ledger: Ledger, batch: Batch) -> Receipt:
    """The receipt of an admitted batch, as the ledger knows it now."""
    bad = ledger.quarantine.lines(batch.id, LISTED)
    counts = ledger.admission.admitted(batch.id)
    return Receipt(
        file=batch.name,
        batch=batch.id,
        received_at=batch.received_at,
        accepted=batch.accepted,
        quarantined=batch.quarantined,
        duplicates=counts.known,
        conflicts=counts.conflicts,
        state=ledger.batches.state(batch.id).value,
        bad_lines=bad_lines(bad),
        bad_lines_left_out=batch.quarantined - len(bad),
    )


def write_receipt(drop: Path, receipt: Receipt) -> Path:
    """Put the receipt beside the drop in one step; an older one of the other kind goes."""
    path = receipt_path(drop, receipt.taken)
    content = receipt.model_dump(mode="json", exclude_none=True)
    files.write_text(path, json.dumps(content, indent=2) + "\n")
    receipt_path(drop, not receipt.taken).unlink(missing_ok=True)
    files.sync(path.parent)
    return path


def read_receipt(drop: Path) -> Receipt | None:
    """The receipt that stands beside a drop; none where there is none or it is not ours."""
    for accepted in (True, False):
        try:
            return Receipt.model_validate_json(receipt_path(drop, accepted).read_bytes())
        except (FileNotFoundError, IsADirectoryError, ValidationError):
            continue
    return None
