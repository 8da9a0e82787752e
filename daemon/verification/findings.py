"""What a verification found, what it left out, and what it could not look at."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from pydantic import Field

from policies.errors import LedgerDamaged, PaloradError
from policies.records import Record
from policies.text import storable

CLEAN, FOUND, UNCHECKED = 0, 1, 2
LISTED: Final = 20
LONGEST: Final = 200
RESTORE: Final = "find out who writes there and restore the state directory from a backup"

Check = Literal["ledger", "history", "facts", "archive", "store", "pointer", "server"]


class Finding(Record):
    """One thing that is not as it was written: where, what, and what to do."""

    check: Check
    where: str
    what: str
    advice: str

    @property
    def line(self) -> str:
        """All of it in one line."""
        return f"{self.where}: {self.what}; {self.advice}"


class Report(Record):
    """`palorad verify`.

    `more` counts findings of the same check beyond those listed. `skipped` need not be looked at,
    such as a server that does not run; `unchecked` should have been.
    """

    findings: tuple[Finding, ...] = ()
    more: dict[str, int] = Field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    counted: dict[str, int] = Field(default_factory=dict)

    @property
    def code(self) -> int:
        """The exit code: 0 clean, 1 findings, 2 something could not be checked."""
        if self.findings:
            return FOUND
        return UNCHECKED if self.unchecked else CLEAN

    @property
    def lines(self) -> tuple[str, ...]:
        """What is wrong, one line each."""
        more = [f"{count} more findings like these: {check}" for check, count in self.more.items()]
        left = [f"could not be verified: {line}" for line in self.unchecked]
        return (*(finding.line for finding in self.findings), *more, *left)


class Interrupted(Exception):
    """A verification was told to stop."""


class Inspection:
    """Collects while a verification goes on; `stop` ends it at its next pause."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._stop = stop
        self._findings: list[Finding] = []
        self._more: Counter[str] = Counter()
        self._skipped: list[str] = []
        self._unchecked: list[str] = []
        self._counted: Counter[str] = Counter()

    def found(self, check: Check, where: object, what: str, advice: str = RESTORE) -> None:
        """Something is wrong; of one check only so many are listed, the others counted."""
        if sum(finding.check == check for finding in self._findings) >= LISTED:
            self._more[check] += 1
            return
        self._findings.append(Finding(check=check, where=str(where), what=what, advice=advice))

    def skip(self, line: str) -> None:
        """Something need not be looked at now."""
        self._skipped.append(line)

    def unchecked(self, line: str) -> None:
        """Something could not be looked at."""
        self._unchecked.append(line)

    def count(self, what: str, number: int = 1) -> None:
        """So many more were looked at; a pause."""
        self._counted[what] += number
        self.pause()

    def pause(self) -> None:
        """Raises `Interrupted` where it was told to stop."""
        if self._stop is not None and self._stop.is_set():
            raise Interrupted

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """One part of a verification: what goes wrong in it does not end the others."""
        try:
            yield
        except LedgerDamaged as error:
            self.found("ledger", what, f"SQLite finds: {error.__cause__ or error}")
        except PaloradError as error:
            self.unchecked(f"{what}: {error}")
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            self.unchecked(f"{what}:{where}: {error.strerror or error}")
        except (ValueError, LookupError, TypeError, ArithmeticError) as error:
            said = storable(f"{type(error).__name__}: {error}", LONGEST)
            self.found("ledger", what, f"holds what palorad never writes ({said})")

    def report(self) -> Report:
        """Everything so far."""
        return Report(
            findings=tuple(self._findings),
            more=dict(self._more),
            skipped=tuple(self._skipped),
            unchecked=tuple(self._unchecked),
            counted=dict(self._counted),
        )
