"""How long what the ledger stores as moments has still to wait, by a clock that nobody sets."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from daemon.ledger.records import Lease
from policies.backoff import LONGEST_PAUSE_S
from policies.planning import OpenPlan, Snapshot, Waiting

_Step = tuple[int, str, int, str]
Mark = tuple[str, int] | None
"""How far a step says it is: the stage that it is at, and what it has done of it."""


class Waits:
    """Counts pauses, gathering and deadlines from when each is first seen in this process.

    A stored moment says how much of a wait had passed by then. One that lies further ahead than
    a wait can be long was stored by a clock that was wrong: what was there when the process began
    is due, what has come since waits no longer than it may.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that only ever grow."""
        self._clock = clock
        self._steps: dict[_Step, tuple[float, Mark]] = {}
        self._paused: tuple[tuple[int, datetime], float] | None = None
        self._gathers: tuple[str, float] | None = None
        self._looked = False

    def overdue(self, lease: Lease, mark: Mark = None) -> bool:
        """Whether a step has been at the same `mark` of its progress for as long as its lease
        allows.
        """
        now = self._clock()
        since, reached = self._steps.get(_step(lease), (now, mark))
        if reached != mark:
            since = now
        self._steps[_step(lease)] = since, mark
        return now - since >= lease.allowed_s

    def seen(self, leases: Sequence[Lease]) -> None:
        """These steps run, and no others."""
        begun = self._clock(), None
        self._steps = {step: self._steps.get(step, begun) for step in map(_step, leases)}

    def counted(self, snapshot: Snapshot, now: datetime) -> Snapshot:
        """The snapshot with its stored moments moved to where their waits end by `now`."""
        plan, waiting = self._pause(snapshot.open, now), self._gathering(snapshot, now)
        self._looked = True
        return snapshot.model_copy(update={"open": plan, "waiting": waiting})

    def _pause(self, plan: OpenPlan | None, now: datetime) -> OpenPlan | None:
        if plan is None or plan.not_before is None:
            return plan
        key = (plan.id, plan.not_before)
        if self._paused is None or self._paused[0] != key:
            left = self._possible(plan.not_before - now, timedelta(seconds=LONGEST_PAUSE_S))
            self._paused = key, self._clock() + left.total_seconds()
        left = timedelta(seconds=self._paused[1] - self._clock())
        return plan.model_copy(update={"not_before": now + left})

    def _gathering(self, snapshot: Snapshot, now: datetime) -> tuple[Waiting, ...]:
        """The waiting facts, the oldest of which alone says since when they are gathered."""
        longest = timedelta(seconds=snapshot.limits.batching.max_wait_s)
        dated = [fact for fact in snapshot.waiting if fact.since is not None]
        if not longest or not dated:
            return snapshot.waiting
        oldest = min(dated, key=lambda fact: fact.since or now)
        if self._gathers is None or self._gathers[0] != oldest.batch:
            left = self._possible((oldest.since or now) + longest - now, longest)
            self._gathers = oldest.batch, self._clock() + left.total_seconds()
        left = timedelta(seconds=self._gathers[1] - self._clock())
        return tuple(
            fact.model_copy(update={"since": now + left - longest if fact is oldest else None})
            for fact in snapshot.waiting
        )

    def _possible(self, left: timedelta, longest: timedelta) -> timedelta:
        if left <= longest:
            return left
        return longest if self._looked else timedelta(0)


def _step(lease: Lease) -> _Step:
    return lease.plan, lease.step.value, lease.pid, lease.pid_started
