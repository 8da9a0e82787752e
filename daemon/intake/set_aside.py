"""Dropped files and batches that were set aside after a failure: why, and when to try again."""

from __future__ import annotations

import errno
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import structlog

from policies.backoff import pause_s
from policies.errors import DiskFull, LedgerBusy, PaloradError
from policies.text import storable

FIRST_WAIT_S: Final = 5.0
LONGEST_WAIT_S: Final = 300.0
LONGEST: Final = 300

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """How often something failed while it stayed the same, why, and when it is tried again."""

    signature: str
    failures: int
    until: float
    problem: str


class SetAside:
    """What waits after a failure, by name; pauses double while its signature stays the same.

    Every `now` is in seconds of a clock that nobody sets.
    """

    def __init__(self) -> None:
        self._failures: dict[str, Failure] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each."""
        return tuple(failure.problem for failure in self._failures.values())

    def waits(self, name: str, signature: str, now: float) -> bool:
        """Whether it is not to be tried yet; what has changed since is."""
        last = self._failures.get(name)
        return last is not None and last.signature == signature and now < last.until

    def add(self, name: str, signature: str, problem: str, now: float) -> None:
        """It failed: set it aside for longer than the last time."""
        before = self._failures.get(name)
        failures = before.failures + 1 if before and before.signature == signature else 1
        pause = pause_s(failures, FIRST_WAIT_S, LONGEST_WAIT_S)
        self._failures[name] = Failure(signature, failures, now + pause, problem)
        log.warning("intake.set_aside", name=name, problem=problem, again_in_s=pause)

    def remove(self, name: str, signature: str) -> None:
        """It went well."""
        last = self._failures.get(name)
        if last is not None and last.signature == signature:
            del self._failures[name]

    def keep(self, names: Collection[str]) -> None:
        """Forget everything else: it is gone."""
        self._failures = {n: failure for n, failure in self._failures.items() if n in names}


def problem_of(name: str, error: Exception) -> str:
    """What went wrong with a dropped file or a batch, in one line."""
    if isinstance(error, DiskFull | LedgerBusy):
        return str(error)
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return f"{name}: the disk is full; make room and intake resumes by itself"
        return f"{name}: {error.strerror or error}"
    if isinstance(error, PaloradError):
        return f"{name}: {error}"
    text = storable(f"{type(error).__name__}: {error}", LONGEST)
    return f"{name}: set aside: unexpected {text}; see the log; it is tried again by itself"
