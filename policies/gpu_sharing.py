"""When servers that share a GPU with training sleep and wake: what is seen becomes a phase."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

IDLE_S: Final = 2.0


class SharingPhase(StrEnum):
    """What the servers do for training."""

    UNKNOWN = "not asked yet"
    AWAKE = "awake"
    FALLING_ASLEEP = "falling asleep"
    ASLEEP = "asleep"
    WAKING = "waking"


AWAY: Final = frozenset({SharingPhase.FALLING_ASLEEP, SharingPhase.ASLEEP, SharingPhase.WAKING})
"""In these phases nothing may be loaded, verified or routed."""


class Seen(NamedTuple):
    """What is known in one moment."""

    asleep: int
    """Replicas that answer and sleep."""
    awake: int
    """Replicas that answer and are awake."""
    planned: bool
    """Whether it is known for which plan they sleep."""
    busy: bool
    """Whether a child computes on the GPU."""
    idle_s: float
    """For how many seconds none has, and nobody has asked for room."""


def next_phase(phase: SharingPhase, seen: Seen) -> SharingPhase:
    """What follows from what is seen; falling asleep and waking end by themselves.

    Servers that sleep for no child are woken, whoever put them to sleep; they are not put to sleep
    any further for a plan that is given up. One that is awake beside a child, because it was
    started again, is put to sleep.
    """
    match phase:
        case SharingPhase.UNKNOWN if seen.asleep:
            return SharingPhase.ASLEEP if seen.planned else SharingPhase.WAKING
        case SharingPhase.UNKNOWN if seen.awake:
            return SharingPhase.AWAKE
        case SharingPhase.AWAKE if seen.asleep:
            return SharingPhase.WAKING
        case SharingPhase.ASLEEP if seen.busy and seen.awake:
            return SharingPhase.FALLING_ASLEEP
        case SharingPhase.FALLING_ASLEEP | SharingPhase.ASLEEP if (
            not seen.busy and seen.idle_s >= IDLE_S
        ):
            return SharingPhase.WAKING
    return phase
