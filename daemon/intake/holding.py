"""Drops that could not be taken: why, and when to try again."""

from __future__ import annotations

import errno
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
class Held:
    """One drop as it was, how often it failed, when it is tried again, and why it failed."""

    signature: str
    failures: int
    until: float
    problem: str


class Holding:
    """What waits after a failure; pauses double while the drop stays the same.

    Every `now` is in seconds of a clock that nobody sets.
    """

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for each."""
        return tuple(held.problem for held in self._held.values())

    def waits(self, name: str, signature: str, now: float) -> bool:
        """Whether a drop is not to be tried yet; one that has changed is."""
        held = self._held.get(name)
        return held is not None and held.signature == signature and now < held.until

    def hold(self, name: str, signature: str, problem: str, now: float) -> None:
        """It failed: wait."""
        before = self._held.get(name)
        failures = before.failures + 1 if before and before.signature == signature else 1
        pause = pause_s(failures, FIRST_WAIT_S, LONGEST_WAIT_S)
        self._held[name] = Held(signature, failures, now + pause, problem)
        log.warning("intake.held", name=name, problem=problem, again_in_s=pause)

    def release(self, name: str) -> None:
        """It went well."""
        self._held.pop(name, None)


def problem_of(name: str, error: Exception) -> str:
    """What went wrong with a drop, in one line."""
    if isinstance(error, DiskFull | LedgerBusy):
        return str(error)
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return f"{name}: the disk is full; make room and it goes on by itself"
        return f"{name}: {error.strerror or error}"
    if isinstance(error, PaloradError):
        return f"{name}: {error}"
    told = storable(f"{type(error).__name__}: {error}", LONGEST)
    return (
        f"{name}: set aside: unexpected {told}; the log has more, and it is tried again by itself"
    )
