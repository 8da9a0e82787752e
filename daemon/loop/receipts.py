"""Receipts follow the states of their batches, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final

import structlog

from daemon.intake.intake import Intake
from daemon.ledger.ledger import Ledger

BUDGET_S: Final = 0.1
log = structlog.get_logger()


class Receipts:
    """Which receipts are to be written; a plan of thousands of batches holds up no tick.

    One that cannot be written (a full disk, a folder that is gone) waits for `again`.
    """

    def __init__(
        self, intake: Intake, ledger: Ledger, clock: Callable[[], float] = monotonic
    ) -> None:
        self._intake, self._ledger, self._clock = intake, ledger, clock
        self._due: dict[str, None] = {}
        self._failed: dict[str, None] = {}

    def changed(self, batches: Iterable[str]) -> None:
        """The state of these batches is another now."""
        self._due |= dict.fromkeys(batches)

    def again(self) -> None:
        """Try once more what could not be written."""
        self._due |= self._failed
        self._failed.clear()

    def write(self) -> None:
        """What is due, for about `BUDGET_S` seconds."""
        until = self._clock() + BUDGET_S
        while self._due and self._clock() < until:
            batch = next(iter(self._due))
            del self._due[batch]
            try:
                self._intake.update_receipt(batch, self._ledger.batches.missed(batch))
            except OSError as error:
                self._failed[batch] = None
                log.warning("receipt not updated", batch=batch, reason=str(error))
