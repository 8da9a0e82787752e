"""What writers add to a file after it was read becomes a further portion; then the file goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake.claims import Claim, Claims, Portion, portion_of
from daemon.intake.inbox import Copied, copy, opened
from daemon.intake.writers import Writers, kept_out
from daemon.ledger.ledger import Ledger
from policies.facts.splitting import is_list

_BLOCK: Final = 1 << 20
_SNIFF: Final = 1 << 12

State: TypeAlias = tuple[int, int]  # size in bytes, nanoseconds of the last change


@dataclass(frozen=True, slots=True)
class Due:
    """Bytes of a claimed file that are to become a batch, copied, as a portion of it.

    `instead` is a former batch and the first of its lines that are read again here: the last one
    was not at its end.
    """

    portion: Portion
    instead: tuple[str, int] | None = None


class Following:
    """Follows claimed files until nobody writes to them any more."""

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        claims: Claims,
        settings: IntakeSettings,
        clock: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._layout = layout
        self._claims = claims
        self._settings = settings
        self._most = settings.max_file_mb * 2**20
        self._clock = clock
        self._portions: dict[str, list[Portion]] = {}
        self._read: dict[str, State] = {}
        self._since: dict[str, tuple[State, float]] = {}
        self._open: dict[str, str] = {}
        self._told: dict[str, int] = {}

    @property
    def waiting(self) -> tuple[str, ...]:
        """One line for each file whose writer has not closed it."""
        return tuple(self._open.values())

    def portions(self, claim: Claim) -> list[Portion]:
        """What has been read of a file; the ledger knows after a restart."""
        if claim.mark not in self._portions:
            known = self._ledger.admission.signed(f"{claim.mark}:")
            found = [
                portion_of(claim, number, batch, signature)
                for number, (batch, signature) in enumerate(known)
            ]
            self._portions[claim.mark] = found
            if found:
                self._read[claim.mark] = found[-1].end, found[-1].changed_ns
        return self._portions[claim.mark]

    def untold(self, claim: Claim) -> list[Portion]:
        """What was read of a file and has no receipt, as far as this process knows."""
        return self.portions(claim)[self._told.get(claim.mark, 0) :]

    def told(self, portion: Portion) -> None:
        """A portion has its receipt."""
        self._told[portion.claim.mark] = portion.number + 1

    def have_read(self, portion: Portion) -> None:
        """A portion has become a batch."""
        known = self.portions(portion.claim)
        if not known or known[-1].signature != portion.signature:
            known.append(portion)
        state = portion.end, portion.changed_ns
        self._read[portion.claim.mark] = state
        self._since.setdefault(portion.claim.mark, (state, self._clock()))

    def grown(self, claim: Claim) -> bool:
        """Whether a file has changed since it was read, and has rested."""
        state, now = _state(claim.path.stat(follow_symlinks=False)), self._clock()
        before = self._since.get(claim.mark)
        since = before[1] if before and before[0] == state else now
        self._since[claim.mark] = state, since
        return state != self._read.get(claim.mark) and now - since >= self._settings.stable_s

    def let_go(self, claim: Claim) -> bool:
        """Remove a file that has been read, if nobody writes to it; whether it is gone."""
        rests = self._clock() - self._since.get(claim.mark, ((0, 0), self._clock()))[1]
        descriptor = opened(claim.path)
        try:
            with kept_out(descriptor) as writers:
                sure = writers is Writers.NONE or (
                    writers is Writers.UNKNOWN and rests >= self._settings.late_lines_s
                )
                if sure and _state(os.fstat(descriptor)) == self._read.get(claim.mark):
                    self._claims.release(claim)
                    self._forget(claim)
                    return True
        finally:
            os.close(descriptor)
        if writers is Writers.OPEN:
            line = f"{claim.name}: was read; its writer still has it open, and may add lines"
            self._open[claim.mark] = line
        else:
            self._open.pop(claim.mark, None)
        return False

    def copied(self, claim: Claim, part: Path) -> Generator[None, None, Due | None]:
        """Copy what is to be read next of a file to `part`; None where that is nothing yet."""
        portions = self.portions(claim)
        state = _state(claim.path.stat(follow_symlinks=False))
        start, instead = 0, None
        if portions:
            last = portions[-1]
            archived = self._layout.archived(last.batch)
            if (yield from _still_holds(claim.path, last, archived)):
                found = self._behind(claim.path, last)
                if found is None:
                    self._read[claim.mark] = state
                    return None
                start, instead = found
        if state[0] == start:
            self._read[claim.mark] = state
            return None
        done: Copied = yield from copy(claim.path, part, start, self._most)
        if _state(claim.path.stat(follow_symlinks=False)) != state:
            return None
        portion = Portion(
            claim, len(portions), start, start + done.size, state[1], batch=done.batch
        )
        return Due(portion, instead)

    def _behind(self, path: Path, last: Portion) -> tuple[int, tuple[str, int] | None] | None:
        """Where reading goes on, and which former lines it replaces; None where nothing came."""
        with os.fdopen(opened(path), "rb") as source:
            source.seek(last.end)
            more = source.read(_BLOCK)
            if not more or (len(more) < _BLOCK and not more.strip()):
                return None
            if is_list(_at(source, 0, _SNIFF)):
                return 0, (last.batch, 1)
            start = _line_start(source, last.start, last.end)
        if start == last.end or last.end - start >= self._most:
            return last.end, None
        return start, (last.batch, self._ledger.admission.arriving(last.batch).line)

    def _forget(self, claim: Claim) -> None:
        for kept in (self._portions, self._read, self._since, self._open, self._told):
            kept.pop(claim.mark, None)

    def keep(self, claims: list[Claim]) -> None:
        """Forget every other file: it is gone."""
        marks = {claim.mark for claim in claims}
        for kept in (self._portions, self._read, self._since, self._open, self._told):
            for mark in [mark for mark in kept if mark not in marks]:
                del kept[mark]


def _state(status: os.stat_result) -> State:
    return status.st_size, status.st_mtime_ns


def _at(source: BinaryIO, position: int, size: int) -> bytes:
    source.seek(position)
    return source.read(size)


def _still_holds(path: Path, portion: Portion, archived: Path) -> Generator[None, None, bool]:
    """Whether a file still has the bytes of a portion, as they were archived, where they were."""
    left = portion.end - portion.start
    with os.fdopen(opened(path), "rb") as source, archived.open("rb") as before:
        source.seek(portion.start)
        while left > 0:
            block = source.read(min(left, _BLOCK))
            if not block or block != before.read(len(block)):
                return False
            left -= len(block)
            yield None
    return True


def _line_start(source: BinaryIO, start: int, end: int) -> int:
    """Where the line begins that is still open at `end`; `end` where none is."""
    at = end
    while at > start:
        begin = max(start, at - _SNIFF)
        found = _at(source, begin, at - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        at = begin
    return start
