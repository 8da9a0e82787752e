"""Receipts are written a few at a time, and those that could not be written are tried again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from daemon.intake.intake import Intake
from daemon.ledger.ledger import Ledger
from daemon.loop.receipts import BUDGET_S, Receipts

MANY = [f"batch-{n}" for n in range(1000)]


class Slow:
    """Writes a receipt in ten milliseconds of its own clock; some cannot be written."""

    def __init__(self) -> None:
        self.now, self.written = 0.0, list[str]()
        self.broken = set[str]()

    def update_receipt(self, batch: str, _missed: tuple[str, ...]) -> None:
        self.now += 0.01
        if batch in self.broken:
            raise OSError(28, "No space left on device")
        self.written.append(batch)


def begun(slow: Slow) -> Receipts:
    ledger: Any = SimpleNamespace(batches=SimpleNamespace(missed=lambda _: ()))
    return Receipts(cast(Intake, slow), cast(Ledger, ledger), lambda: slow.now)


def test_a_plan_of_many_batches_holds_up_no_tick_and_misses_none() -> None:
    slow = Slow()
    receipts = begun(slow)
    receipts.changed(MANY)
    ticks = 0
    while len(slow.written) < len(MANY):
        began = slow.now
        receipts.write()
        ticks += 1
        assert slow.now - began < 2 * BUDGET_S
    assert ticks > 50
    assert slow.written == MANY
    receipts.write()
    assert slow.written == MANY


def test_what_could_not_be_written_waits_until_it_is_tried_again() -> None:
    slow = Slow()
    slow.broken = {"batch-1"}
    receipts = begun(slow)
    receipts.changed(MANY[:3])
    receipts.write()
    receipts.write()
    assert slow.written == ["batch-0", "batch-2"]
    slow.broken.clear()
    receipts.again()
    receipts.write()
    assert slow.written == ["batch-0", "batch-2", "batch-1"]
