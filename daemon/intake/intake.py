"""Dropped files become batches, and every batch that was begun is admitted and gets its receipt."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from adapters import files
from daemon.base import faults
from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake.admit import admit, begin, count_bad, retry_quarantined, rules_of
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
from daemon.intake.set_aside import SetAside, problem_of
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Arriving
from policies.errors import LedgerBusy, PaloradError, RequestRefused
from policies.facts.supersession import ConflictPolicy
from policies.records import INBOX, Batch

_FOLDER: Final = ""  # the inbox itself among what is set aside: no file has this name

log = structlog.get_logger(__name__)


class Intake:
    """Takes files from the inbox and admits batches, in steps that never exceed their time.

    Every stage is durable before the next: bytes in the archive, the batch begun in the ledger, its
    facts admitted, the receipt beside the file, the file removed. Killed between any two, the next
    start resumes there. Batches that feeds have begun are admitted here as well.
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
        self._set_aside = SetAside()
        self._refused: dict[str, str] = {}
        self._now = datetime.min.replace(tzinfo=UTC)
        self._work: Iterator[Receipt | None] | None = None
        self._clean_up()

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for every file or batch that could not be taken yet."""
        return self._set_aside.problems

    def step(self, now: datetime, budget_s: float) -> list[Receipt]:
        """Work for about `budget_s` seconds; the receipts written meanwhile.

        Returns early when nothing is left to do. What fails for want of room or rights is set
        aside and tried again with growing pauses; nothing is lost by it.
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
        """Resume every batch that was begun, whatever it came from; then take in files."""
        begun = (
            *self._ledger.admission.admitting(),
            *self._ledger.admission.admitting(aside=True),
        )
        for arriving in begun:
            drop = self._drop_of(arriving)
            if not self._waits(drop):
                work = self._admit(arriving, drop if arriving.batch.feed is None else None)
                yield from self._guarded(drop, work)
        try:
            drops = self._inbox.ripe(self._clock())
        except OSError as error:
            problem = f"{self._layout.inbox}: cannot be read: {error.strerror}"
            self._set_aside.add(_FOLDER, "", problem, self._clock())
            return
        self._forget_gone({arriving.batch.name for arriving in begun})
        for drop in drops:
            if not self._waits(drop):
                yield from self._guarded(drop, self._take(drop))

    def _drop_of(self, arriving: Arriving) -> Drop:
        """The file that a batch came from, as it was; of a feed's batch a name without a file."""
        return Drop(self._layout.inbox / arriving.batch.name, 0, arriving.signature)

    def _guarded(self, drop: Drop, work: Iterator[Receipt | None]) -> Iterator[Receipt | None]:
        """The step boundary: a file or batch that fails is set aside, the others go on."""
        try:
            yield from work
        except (LedgerBusy, OSError) as error:
            self._note(drop, error)
        except Exception as error:
            log.exception("intake.unexpected", file=drop.name)
            problem = self._note(drop, error)
            if drop.unchanged():
                yield from self._report_error(drop, "set aside", problem)
        else:
            self._set_aside.remove(drop.name)

    def _note(self, drop: Drop, error: Exception) -> str:
        problem = problem_of(drop.name, error)
        self._set_aside.add(drop.name, drop.signature, problem, self._clock())
        return problem

    def _waits(self, drop: Drop) -> bool:
        if self._refused.get(drop.name) == drop.signature:
            return True
        return self._set_aside.waits(drop.name, drop.signature, self._clock())

    def _forget_gone(self, begun: set[str]) -> None:
        """A note goes with its file, unless the file is a batch that is not yet whole."""
        here = self._inbox.names
        self._set_aside.keep(here | begun)
        self._refused = {name: seen for name, seen in self._refused.items() if name in here}

    # --- one file ------------------------------------------------------------------------------

    def _take(self, drop: Drop) -> Iterator[Receipt | None]:
        """Begin a batch with the bytes of a file, unless it is refused or they are known."""
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
            yield self._finish(drop, batch_id)
            return
        if self._all_or_nothing and (yield from self._refused_for_bad_lines(drop, part)):
            return
        batch = Batch(
            id=batch_id,
            name=drop.name,
            received_at=self._now,
            source=INBOX,
            accepted=0,
            quarantined=0,
        )
        arriving = begin(self._ledger, self._layout, part, batch, signature=drop.signature)
        yield from self._admit(arriving, drop)

    def _refused_for_bad_lines(
        self, drop: Drop, part: Path
    ) -> Generator[Receipt | None, None, bool]:
        lines, bad = yield from count_bad(part, self._rules)
        if not bad:
            return False
        part.unlink()
        why = f"has bad lines, {len(bad)} of {lines} (setting intake.bad_lines)"
        yield from self._refuse(drop, why, bad_lines(bad[:LISTED]))
        return True

    # --- one batch -----------------------------------------------------------------------------

    def _admit(self, arriving: Arriving, drop: Drop | None) -> Iterator[Receipt | None]:
        """Admit what is left of a batch; then its file, if it has one, gets a receipt and goes.

        While it cannot be read on it is set aside in the ledger: nothing else waits for it.
        """
        try:
            yield from admit(self._ledger, self._layout, arriving, self._rules, lambda: self._now)
        except LedgerBusy:
            raise
        except Exception as error:
            if not arriving.aside:
                self._set_batch_aside(arriving, problem_of(arriving.batch.name, error))
            raise
        if drop is not None:
            yield self._finish(drop, arriving.batch.id)

    def _set_batch_aside(self, arriving: Arriving, problem: str) -> None:
        try:
            self._ledger.admission.set_aside(arriving.batch.id, problem, self._now)
        except (OSError, PaloradError) as error:
            log.warning("intake.not_set_aside", file=arriving.batch.name, reason=str(error))

    def _finish(self, drop: Drop, batch_id: str) -> Receipt:
        """Write the receipt of a whole batch beside a file that brought it, or brought it again."""
        arriving = self._ledger.admission.arriving(batch_id)
        receipt = receipt_of(self._ledger, arriving.batch)
        if (arriving.batch.name, arriving.signature) != (drop.name, drop.signature):
            receipt = receipt.model_copy(
                update={"file": drop.name, "already_known": True, "received_at": self._now}
            )
        write_receipt(drop.path, receipt)
        faults.point("intake:receipt")
        self._remove(drop)
        log.info("intake.taken", file=drop.name, batch=batch_id, state=receipt.state)
        return receipt

    def _remove(self, drop: Drop) -> None:
        """Take a file away unless something else has come under its name meanwhile."""
        if drop.unchanged():
            drop.path.unlink()
            files.sync(drop.path.parent)
        faults.point("intake:removed")

    def _refuse(self, drop: Drop, why: str, listed: tuple[BadLine, ...] = ()) -> Iterator[Receipt]:
        """What cannot be read as a whole stays where it is, with one receipt until it changes."""
        self._refused[drop.name] = drop.signature
        yield from self._report_error(drop, "refused", f"{drop.name} {why}", listed)

    def _report_error(
        self, drop: Drop, state: str, error: str, listed: tuple[BadLine, ...] = ()
    ) -> Iterator[Receipt]:
        """One receipt for each error of a file that stays where it is."""
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
            self._note(drop, failure)
            return
        log.warning("intake.not_taken", file=drop.name, state=state, why=error)
        yield receipt

    # --- from outside --------------------------------------------------------------------------

    def submit(self, path: Path) -> tuple[str, bool]:
        """Put a copy of a file into the inbox, ripe at once; its batch id, and whether it is known.

        Bytes that are known are not copied. Raises `RequestRefused` with one clear line, or
        `OSError`.
        """
        drop = self._inbox.look(path)
        if drop.refusal is not None:
            raise RequestRefused(f"{path} {drop.refusal}")
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
            raise RequestRefused(f"{path} may not be read by palorad's user") from None
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
