"""Drops become batches: found, copied, admitted in pieces, receipted and taken away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from adapters import files
from daemon.base import faults
from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake.admit import admit_pieces, count_bad, feed_cursor, retry_quarantined, rules_of
from daemon.intake.holding import Holding, problem_of
from daemon.intake.inbox import RECEIPT_ENDINGS, Drop, Inbox, copy_and_hash
from daemon.intake.receipts import (
    LISTED,
    BadLine,
    Receipt,
    bad_lines,
    read_receipt,
    receipt_of,
    write_receipt,
)
from daemon.ledger.ledger import Ledger
from policies.errors import LedgerBusy, PaloradError, Refused
from policies.facts.supersession import ConflictPolicy
from policies.records import Batch

INBOX: Final = "inbox"

log = structlog.get_logger(__name__)


class Intake:
    """Takes drops from the inbox in steps that never exceed their time.

    Every stage is durable before the next: bytes in the archive, facts in the ledger, the receipt
    beside the drop, the drop removed. Killed between any two, the next start goes on from there.
    """

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        settings: IntakeSettings,
        clock: Callable[[], float] = time.monotonic,
        *,
        model_dir: Path | None = None,
    ) -> None:
        self._ledger = ledger
        self._layout = layout
        self._rules = rules_of(settings, model_dir)
        self._all_or_nothing = settings.bad_lines == "reject"
        self._inbox = Inbox(layout.inbox, settings.stable_s, settings.max_file_mb * 2**20)
        self._clock = clock
        self._held = Holding()
        self._refused: dict[str, str] = {}
        self._now = datetime.min.replace(tzinfo=UTC)
        self._work: Iterator[Receipt | None] | None = None
        self._clean_up()

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for every drop that could not be taken yet."""
        return self._held.problems

    def step(self, now: datetime, budget_s: float) -> list[Receipt]:
        """Work for about `budget_s` seconds; the receipts written meanwhile.

        Returns early when nothing is left to do. What fails for want of room or rights is held
        and tried again with growing pauses; nothing is lost by it.
        """
        self._now = now
        until = self._clock() + budget_s
        written: list[Receipt] = []
        if self._work is None:
            self._work = self._run()
        while self._clock() < until:
            done = next(self._work, self)
            if done is self:
                self._work = None
                break
            if isinstance(done, Receipt):
                written.append(done)
        return written

    @property
    def busy(self) -> bool:
        """Whether the last step stopped in the middle of something."""
        return self._work is not None

    # --- one pass over what there is -----------------------------------------------------------

    def _run(self) -> Iterator[Receipt | None]:
        for arriving in (
            *self._ledger.admission.admitting(),
            *self._ledger.admission.admitting(aside=True),
        ):
            path = self._layout.inbox / arriving.batch.name
            drop = Drop(path, size=0, signature=arriving.signature)
            if not self._waits(drop):
                yield from self._guarded(drop, self._go_on(arriving.batch, drop))
        try:
            drops = self._inbox.ripe(self._clock())
        except OSError as error:
            told = f"{self._layout.inbox}: cannot be read: {error.strerror}"
            self._held.hold("inbox", "", told, self._clock())
            return
        self._held.release("inbox")
        for drop in drops:
            if not self._waits(drop):
                yield from self._guarded(drop, self._take(drop))

    def _guarded(self, drop: Drop, work: Iterator[Receipt | None]) -> Iterator[Receipt | None]:
        """The step boundary: a drop that fails is held, the others go on."""
        try:
            yield from work
        except LedgerBusy as error:
            self._hold(drop, error)
        except OSError as error:
            self._set_aside(drop, self._hold(drop, error))
        except Exception as error:
            log.exception("intake.unexpected", file=drop.name)
            problem = self._hold(drop, error)
            self._set_aside(drop, problem)
            if drop.unchanged():
                yield from self._tell_error(drop, "set aside", problem)
        else:
            self._held.release(drop.name)

    def _hold(self, drop: Drop, error: Exception) -> str:
        problem = problem_of(drop.name, error)
        self._held.hold(drop.name, drop.signature, problem, self._clock())
        return problem

    def _set_aside(self, drop: Drop, problem: str) -> None:
        """If what has failed is a batch already, nothing else waits until it is whole."""
        try:
            for arriving in self._ledger.admission.admitting():
                if (arriving.batch.name, arriving.signature) == (drop.name, drop.signature):
                    self._ledger.admission.set_aside(arriving.batch.id, problem, self._now)
        except (OSError, PaloradError) as error:
            log.warning("intake.not_set_aside", file=drop.name, reason=str(error))

    def _waits(self, drop: Drop) -> bool:
        if self._refused.get(drop.name) == drop.signature:
            return True
        return self._held.waits(drop.name, drop.signature, self._clock())

    # --- one drop ------------------------------------------------------------------------------

    def _take(self, drop: Drop) -> Iterator[Receipt | None]:
        if drop.refusal is not None:
            yield from self._refuse(drop, drop.refusal)
            return
        part = self._layout.archive / f".{os.getpid()}.part"
        batch_id = ""
        try:
            for batch_id in copy_and_hash(drop, part):  # noqa: B007 - the last one is the digest
                yield None
        except PermissionError:
            yield from self._refuse(drop, "may not be read by palorad; give it read rights")
            return
        if not drop.unchanged():
            part.unlink(missing_ok=True)
            return
        if self._ledger.batches.is_complete(batch_id):
            part.unlink(missing_ok=True)
            yield self._known(drop, batch_id)
            return
        if self._all_or_nothing:
            lines, bad = yield from count_bad(part, self._rules)
            if bad:
                part.unlink()
                told = f"has bad lines, {len(bad)} of {lines} (setting intake.bad_lines)"
                yield from self._refuse(drop, told, bad_lines(bad[:LISTED]))
                return
        files.put_in_place(part, self._layout.archived(batch_id))
        faults.point("intake:archived")
        batch = Batch(
            id=batch_id,
            name=drop.name,
            received_at=self._now,
            source=INBOX,
            accepted=0,
            quarantined=0,
        )
        yield from self._go_on(batch, drop)

    def _go_on(self, batch: Batch, drop: Drop) -> Iterator[Receipt | None]:
        """Admit what is left of an archived batch, then receipt and remove its drop."""
        archived = self._layout.archived(batch.id)
        yield from admit_pieces(
            self._ledger,
            archived,
            batch,
            self._rules,
            lambda: self._now,
            signature=drop.signature,
            cursor=feed_cursor(batch, drop.signature),
        )
        if batch.source == INBOX:
            yield self._finish(drop, self._ledger.batches.get(batch.id))

    def _finish(self, drop: Drop, batch: Batch, again: bool = False) -> Receipt:
        receipt = receipt_of(self._ledger, batch)
        if again:
            receipt = receipt.model_copy(
                update={"file": drop.name, "already_known": True, "received_at": self._now}
            )
        write_receipt(drop.path, receipt)
        faults.point("intake:receipt")
        self._remove(drop)
        log.info("intake.taken", file=drop.name, batch=batch.id, state=receipt.state)
        return receipt

    def _known(self, drop: Drop, batch_id: str) -> Receipt:
        """The same bytes again: the same drop after a crash, or another one."""
        arrived = self._ledger.admission.arriving(batch_id)
        same = arrived.signature == drop.signature and arrived.batch.name == drop.name
        return self._finish(drop, arrived.batch, again=not same)

    def _remove(self, drop: Drop) -> None:
        """Take a drop away unless something else has come under its name meanwhile."""
        if drop.unchanged():
            drop.path.unlink()
            files.sync(drop.path.parent)
        faults.point("intake:removed")

    def _refuse(self, drop: Drop, why: str, listed: tuple[BadLine, ...] = ()) -> Iterator[Receipt]:
        """What cannot be read as a whole stays where it is, with one receipt until it changes."""
        self._refused[drop.name] = drop.signature
        yield from self._tell_error(drop, "refused", f"{drop.name} {why}", listed)

    def _tell_error(
        self, drop: Drop, state: str, error: str, listed: tuple[BadLine, ...] = ()
    ) -> Iterator[Receipt]:
        """One receipt for each error of a drop that stays where it is."""
        before = read_receipt(drop.path)
        if before is not None and (before.error, before.signature) == (error, drop.signature):
            return
        receipt = Receipt(
            file=drop.name,
            received_at=self._now,
            state=state,
            error=error,
            bad_lines=listed,
            signature=drop.signature,
        )
        try:
            write_receipt(drop.path, receipt)
        except OSError as failure:
            self._hold(drop, failure)
            return
        log.warning("intake.not_taken", file=drop.name, state=state, why=error)
        yield receipt

    # --- from outside --------------------------------------------------------------------------

    def submit(self, path: Path) -> tuple[str, bool]:
        """Put a copy of a file into the inbox, ripe at once; its batch id, and whether it is known.

        Raises `Refused` with one clear line, or `OSError`. Bytes that are known are not copied.
        """
        drop = self._inbox.look(path)
        if drop.refusal is not None:
            raise Refused(f"{path} {drop.refusal}")
        target = self._inbox.free_name(path.name)
        part = target.with_name(f".{os.getpid()}.submit.part")
        try:
            *_, batch_id = copy_and_hash(drop, part)
            known = self._ledger.batches.is_complete(batch_id)
            if not known:
                files.put_in_place(part, target)
                self._inbox.rested(target, self._clock())
            return batch_id, known
        except PermissionError:
            raise Refused(f"{path} may not be read by palorad's user") from None
        finally:
            part.unlink(missing_ok=True)

    def retry(
        self, batch_id: str, now: datetime, line: int | None = None, newest: bool = False
    ) -> Iterator[tuple[int, int]]:
        """Read quarantined lines again, a few at a time: how many, and how many are bad still.

        With `newest` a conflicting line wins over what stands. Raises `NotFound`, `OSError`.
        """
        rules = self._rules
        if newest:
            rules = replace(rules, conflicts=ConflictPolicy.NEWEST)
        archived = self._layout.archived(batch_id)
        for piece in retry_quarantined(self._ledger, batch_id, archived, rules, line, now):
            self.tell(batch_id)
            yield piece

    def tell(self, batch_id: str, not_learnt: tuple[str, ...] = ()) -> Receipt | None:
        """Bring a batch's receipt up to date, if it still stands beside where the drop was."""
        batch = self._ledger.batches.get(batch_id)
        if batch.source != INBOX:
            return None
        drop = self._layout.inbox / batch.name
        before = read_receipt(drop)
        if before is None or before.batch != batch.id:
            return None
        receipt = receipt_of(self._ledger, batch).model_copy(update={"not_learnt": not_learnt})
        if receipt != before:
            write_receipt(drop, receipt)
        return receipt

    def _clean_up(self) -> None:
        """Copies and receipts that a killed process left half made."""
        for folder in (self._layout.archive, self._layout.inbox):
            if folder.is_dir():
                for part in folder.glob(".*.part"):
                    if part.name.split(".")[1].isdigit():
                        part.unlink(missing_ok=True)
        for ending in RECEIPT_ENDINGS if self._layout.inbox.is_dir() else ():
            for half in self._layout.inbox.glob(f".*{ending}.tmp"):
                half.unlink(missing_ok=True)
