"""Dropped files become batches, and every batch that was begun is admitted and gets its receipt."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog

from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake.admit import Rules, begin, count_bad, rules_of
from daemon.intake.arrivals import Arrivals
from daemon.intake.claims import Claim, Claims, Portion, same_file
from daemon.intake.following import Due, Following
from daemon.intake.inbox import RECEIPT_ENDINGS, Copied, Drop, Inbox, copy, opened
from daemon.intake.notes import Notes
from daemon.intake.receipts import LISTED, Receipt, bad_lines, read_receipt
from daemon.intake.writers import Writers, kept_out
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Arriving
from policies.errors import LedgerBusy, RequestRefused
from policies.records import INBOX, Batch

_OURS: Final = ".palorad-"  # how unfinished copies in the inbox begin, unlike anyone else's

log = structlog.get_logger(__name__)


class Intake:
    """Takes files from the inbox and admits batches, in steps that never exceed their time.

    Every stage is durable before the next: bytes in the archive, the file claimed, the batch begun
    in the ledger, its facts admitted, the receipt where the file was, the file removed once nobody
    writes to it. Killed between any two, the next start resumes there. Batches that feeds have
    begun are admitted here as well.
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
        self._arrivals = Arrivals(ledger, layout, rules_of(settings, model_dir))
        self._settings = settings
        self._inbox = Inbox(layout.inbox, settings.stable_s, settings.max_file_mb * 2**20)
        self._claims = Claims(layout.inbox)
        self._following = Following(ledger, layout, self._claims, settings, clock)
        self._notes = Notes(layout.inbox, clock)
        self._clock = clock
        self._open: dict[str, str] = {}
        self._now = datetime.min.replace(tzinfo=UTC)
        self._work: Iterator[Receipt | None] | None = None
        self._clean_up()

    @property
    def rules(self) -> Rules:
        """How lines become facts."""
        return self._arrivals.rules

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for every file or batch that could not be taken yet."""
        return (*self._notes.problems, *self._open.values(), *self._following.waiting)

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
            name, signature = arriving.batch.name, arriving.signature
            if not self._notes.waits(name, signature):
                yield from self._guarded(name, signature, self._admit(arriving))
        try:
            drops, claims = self._inbox.ripe(self._clock()), self._claims.all()
        except OSError as error:
            self._notes.unreadable(error)
            return
        here = self._inbox.names
        self._following.keep(claims)
        self._notes.keep(
            here | {claim.mark for claim in claims}, {arriving.batch.name for arriving in begun}
        )
        self._open = {name: line for name, line in self._open.items() if name in here}
        for claim in claims:
            if not self._notes.waits(claim.mark, ""):
                yield from self._guarded(claim.mark, "", self._follow(claim), claim.name)
        for drop in drops:
            if not self._notes.waits(drop.name, drop.signature):
                yield from self._guarded(drop.name, drop.signature, self._take(drop))

    def _guarded(
        self, name: str, signature: str, work: Iterator[Receipt | None], shown: str = ""
    ) -> Generator[Receipt | None, None, bool]:
        """The step boundary: a file or batch that fails is set aside, the others go on.

        Whether it went well.
        """
        shown = shown or name
        try:
            yield from work
        except (LedgerBusy, OSError) as error:
            self._notes.failed(name, signature, error, shown)
        except Exception as error:
            log.exception("intake.unexpected", file=shown)
            problem = self._notes.failed(name, signature, error, shown)
            yield from self._notes.report(shown, signature, problem, self._now)
        else:
            self._notes.well(name, signature)
            return True
        return False

    # --- one file ------------------------------------------------------------------------------

    def _take(self, drop: Drop) -> Iterator[Receipt | None]:
        """Copy, claim and admit a file, unless it is refused or its writer has it open."""
        if drop.refusal is not None or (yield from self._still_written(drop)):
            yield from self._refuse(drop, drop.refusal)
            return
        part = self._part()
        copied: Copied = yield from copy(drop.path, part)
        if not drop.unchanged():
            part.unlink(missing_ok=True)
            return
        if copied.lines > self._settings.max_lines:
            most = self._settings.max_lines
            why = f"has {copied.lines} lines; at most {most} are read (setting intake.max_lines)"
            part.unlink()
            yield from self._refuse(drop, why)
            return
        if self._settings.bad_lines == "reject" and (yield from self._has_bad_lines(drop, part)):
            return
        claim = self._claims.take(drop)
        if claim is None or not same_file(claim, drop):
            part.unlink()  # what was claimed instead is read by the next pass
            return
        portion = Portion(claim, 0, 0, copied.size, drop.changed_ns, copied.batch)
        yield from self._begin(Due(portion), part)

    def _still_written(self, drop: Drop) -> Generator[Receipt | None, None, bool]:
        """Whether somebody has the file open to write to it, so that it waits where it is."""
        self._open.pop(drop.name, None)
        try:
            descriptor = opened(drop.path)
        except PermissionError:
            yield from self._refuse(drop, "may not be read by palorad; give it read rights")
            return True
        try:
            with kept_out(descriptor) as writers:
                if writers is Writers.OPEN:
                    line = f"{drop.name}: its writer still has it open; it is read once closed"
                    self._open[drop.name] = line
        finally:
            os.close(descriptor)
        return drop.name in self._open

    def _has_bad_lines(self, drop: Drop, part: Path) -> Generator[Receipt | None, None, bool]:
        found = yield from count_bad(part, self._arrivals.rules, LISTED)
        if not found.bad:
            return False
        part.unlink()
        why = f"has bad lines, {found.bad} of {found.lines} (setting intake.bad_lines)"
        receipts = self._notes.refuse(
            drop.name, drop.signature, why, self._now, bad_lines(found.first)
        )
        yield from receipts
        return True

    def _refuse(self, drop: Drop, why: str | None) -> Iterator[Receipt]:
        if why is not None:
            yield from self._notes.refuse(drop.name, drop.signature, why, self._now)

    # --- one claimed file ----------------------------------------------------------------------

    def _follow(self, claim: Claim) -> Iterator[Receipt | None]:
        """Read what a claimed file has that was not read; remove it once its writer is gone.

        Not before each of its batches has its receipt: the file is all that still asks for one.
        """
        portions = self._following.portions(claim)
        if portions and not self._ledger.batches.is_complete(portions[-1].batch):
            return
        for portion in self._following.untold(claim):
            before = read_receipt(self._layout.inbox / portion.name)
            if before is None or before.batch != portion.batch:
                yield self._finish(portion)
            self._following.told(portion)
        if not self._following.grown(claim):
            self._following.let_go(claim)
            return
        part = self._part()
        due: Due | None = yield from self._following.copied(claim, part)
        if due is None:
            part.unlink(missing_ok=True)
        else:
            yield from self._begin(due, part)

    def _begin(self, due: Due, part: Path) -> Iterator[Receipt | None]:
        """Begin and admit the batch of a portion, unless its bytes are known."""
        portion = due.portion
        if self._ledger.batches.is_complete(portion.batch):
            part.unlink()
            if due.instead is not None and due.instead[0] != portion.batch:
                self._ledger.quarantine.withdraw(*due.instead)
            self._following.have_read(portion)
            yield self._finish(portion)
            self._following.told(portion)
        else:
            batch = Batch(
                id=portion.batch,
                name=portion.name,
                received_at=self._now,
                source=INBOX,
                accepted=0,
                quarantined=0,
            )
            arriving = begin(
                self._ledger,
                self._layout,
                part,
                batch,
                signature=portion.signature,
                instead=due.instead,
            )
            self._following.have_read(portion)
            name, signature = portion.name, portion.signature
            if not (yield from self._guarded(name, signature, self._admit(arriving))):
                return
            if (arriving.batch.name, arriving.signature) != (name, signature):
                yield self._finish(portion)  # bytes that something else had begun
            self._following.told(portion)
        self._following.let_go(portion.claim)

    def _finish(self, portion: Portion) -> Receipt:
        name, signature = portion.name, portion.signature
        return self._arrivals.finish(name, signature, portion.batch, self._now)

    def _admit(self, arriving: Arriving) -> Iterator[Receipt | None]:
        return self._arrivals.admit(arriving, lambda: self._now)

    def _part(self) -> Path:
        return self._layout.archive / f".{os.getpid()}.part"

    # --- from outside --------------------------------------------------------------------------

    def submit(self, path: Path) -> tuple[str, bool]:
        """Put a copy of a file into the inbox, ripe at once; its batch id, and whether it is known.

        Bytes that are known are not copied. Raises `RequestRefused` with one clear line, or
        `OSError`.
        """
        drop = self._inbox.look(path)
        if drop.refusal is not None:
            raise RequestRefused(f"{path} {drop.refusal}")
        part = self._layout.inbox / f"{_OURS}{os.getpid()}.part"
        try:
            batch_id = _all_of(copy(path.resolve(), part)).batch
            known = self._ledger.batches.is_complete(batch_id)
            if not known:
                self._inbox.put(part, path.name, self._clock())
            return batch_id, known
        except PermissionError as error:
            if error.filename == os.fspath(part):
                raise
            raise RequestRefused(f"{path} may not be read by palorad's user") from None
        finally:
            part.unlink(missing_ok=True)

    def retry(
        self, batch_id: str, now: datetime, line: int | None = None, newest: bool = False
    ) -> Iterator[tuple[int, int]]:
        """Read quarantined lines again, a few at a time: how many, and how many are bad still.

        With `newest` a conflicting line wins over what stands. Raises `NotFound`, `OSError`.
        """
        return self._arrivals.retry(batch_id, now, line, newest)

    def update_receipt(self, batch_id: str, not_learnt: tuple[str, ...] = ()) -> Receipt | None:
        """Bring a batch's receipt up to date, if it still stands where its file was."""
        return self._arrivals.update_receipt(batch_id, not_learnt)

    def _clean_up(self) -> None:
        """Copies and receipts that a killed process left half made; nobody else's."""
        mine = [*_found(self._layout.archive, ".*.part")]
        mine += _found(self._layout.inbox, f"{_OURS}*.part")
        for ending in RECEIPT_ENDINGS:
            mine += _found(self._layout.inbox, f".*{ending}.tmp")
        for path in mine:
            path.unlink(missing_ok=True)


def _found(folder: Path, pattern: str) -> list[Path]:
    """Files of this user in a folder, if it is there."""
    try:
        return [
            path
            for path in folder.glob(pattern)
            if path.is_file() and path.lstat().st_uid == os.geteuid()
        ]
    except OSError:
        return []


def _all_of(copying: Generator[None, None, Copied]) -> Copied:
    while True:
        try:
            next(copying)
        except StopIteration as done:
            found: Copied = done.value
            return found
