"""When servers that share a GPU with training sleep and wake: what is seen becomes a phase."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

IDLE_S: Final = 2.0


class Phase(StrEnum):
    """What the servers do for training."""

    UNKNOWN = "not asked yet"
    AWAKE = "awake"
    FALLING_ASLEEP = "falling asleep"
    ASLEEP = "asleep"
    WAKING = "waking"


AWAY: Final = frozenset({Phase.FALLING_ASLEEP, Phase.ASLEEP, Phase.WAKING})
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


def next_phase(phase: Phase, seen: Seen) -> Phase:
    """What follows from what is seen; falling asleep and waking end by themselves.

    Servers that sleep for no child are woken, whoever put them to sleep; they are not put to sleep
    any further for a plan that is given up. One that is awake beside a child, because it was
    started again, is put to sleep.
    """
    match phase:
        case Phase.UNKNOWN if seen.asleep:
            return Phase.ASLEEP if seen.planned else Phase.WAKING
        case Phase.UNKNOWN if seen.awake:
            return Phase.AWAKE
        case Phase.AWAKE if seen.asleep:
            return Phase.WAKING
        case Phase.ASLEEP if seen.busy and seen.awake:
            return Phase.FALLING_ASLEEP
        case Phase.FALLING_ASLEEP | Phase.ASLEEP if not seen.busy and seen.idle_s >= IDLE_S:
            return Phase.WAKING
    return phase
