"""Batches on their way in: admitted, told of in a receipt, and read again from quarantine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime

import structlog

from daemon.base import faults
from daemon.config.layout import Layout
from daemon.intake.admit import Rules, admit, retry_quarantined
from daemon.intake.receipts import Receipt, read_receipt, receipt_of, write_receipt
from daemon.intake.set_aside import problem_of
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Arriving
from policies.errors import LedgerBusy, PaloradError
from policies.facts.supersession import ConflictPolicy

log = structlog.get_logger(__name__)


class Arrivals:
    """Admits batches that were begun; `rules` say how lines become facts."""

    def __init__(self, ledger: Ledger, layout: Layout, rules: Rules) -> None:
        self._ledger = ledger
        self._layout = layout
        self.rules = rules

    def admit(self, arriving: Arriving, now: Callable[[], datetime]) -> Iterator[Receipt | None]:
        """Admit what is left of a batch; then it gets its receipt, if it came from a file.

        While it cannot be read on it is set aside in the ledger: nothing else waits for it.
        """
        batch = arriving.batch
        try:
            yield from admit(self._ledger, self._layout, arriving, self.rules, now)
        except LedgerBusy:
            raise
        except Exception as error:
            if not arriving.aside:
                self._set_aside(arriving, problem_of(batch.name, error), now())
            raise
        if batch.feed is None:
            yield self.finish(batch.name, arriving.signature, batch.id, now())

    def _set_aside(self, arriving: Arriving, problem: str, now: datetime) -> None:
        try:
            self._ledger.admission.set_aside(arriving.batch.id, problem, now)
        except (OSError, PaloradError) as error:
            log.warning("intake.not_set_aside", file=arriving.batch.name, reason=str(error))

    def finish(self, name: str, signature: str, batch_id: str, now: datetime) -> Receipt:
        """Write the receipt of a whole batch for the file that brought it, or brought it again."""
        arriving = self._ledger.admission.arriving(batch_id)
        receipt = receipt_of(self._ledger, arriving.batch)
        if (arriving.batch.name, arriving.signature) != (name, signature):
            receipt = receipt.model_copy(
                update={"file": name, "already_known": True, "received_at": now}
            )
        write_receipt(self._layout.inbox / name, receipt)
        faults.point("intake:receipt")
        log.info("intake.taken", file=name, batch=batch_id, state=receipt.state)
        return receipt

    def retry(
        self, batch_id: str, now: datetime, line: int | None = None, newest: bool = False
    ) -> Iterator[tuple[int, int]]:
        """Read quarantined lines again, a few at a time: how many, and how many are bad still.

        With `newest` a conflicting line wins over what stands. Raises `NotFound`, `OSError`.
        """
        rules = self.rules
        if newest:
            rules = replace(rules, conflicts=ConflictPolicy.NEWEST)
        archived = self._layout.archived(batch_id)
        for piece in retry_quarantined(self._ledger, batch_id, archived, rules, line, now):
            self.update_receipt(batch_id)
            yield piece

    def update_receipt(self, batch_id: str, not_learnt: tuple[str, ...] = ()) -> Receipt | None:
        """Bring a batch's receipt up to date, if it still stands where its file was."""
        batch = self._ledger.batches.get(batch_id)
        if batch.feed is not None:
            return None
        drop = self._layout.inbox / batch.name
        before = read_receipt(drop)
        if before is None or before.batch != batch.id:
            return None
        receipt = receipt_of(self._ledger, batch).model_copy(update={"not_learnt": not_learnt})
        if receipt != before:
            write_receipt(drop, receipt)
        return receipt
