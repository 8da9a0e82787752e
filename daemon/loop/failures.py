"""A step that failed: tried again after a pause, given up, or put off until the disk has room."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from daemon.children.jobs import NO_ROOM, JobError
from daemon.ledger.ledger import Ledger
from daemon.ledger.planning import NO_SPACE
from daemon.ledger.records import PlanHead
from daemon.loop import requests
from policies.backoff import pause_s
from policies.planning import Step
from policies.records import PlanKind, PlanState

PROBE_MISMATCH: Final = "ProbeMismatch"
ROOM_AGAIN_S: Final = (1.0, 300.0)

log = structlog.get_logger(__name__)


class Failures:
    """Stores what a failure means for its plan."""

    def __init__(
        self, ledger: Ledger, end: Callable[[PlanHead, PlanState, datetime, str], None]
    ) -> None:
        """`end` ends a plan in a state, at a time, because of something."""
        self._ledger = ledger
        self._end = end
        self._without_room = 0

    def finished(self) -> None:
        """A step has found room for what it wrote."""
        self._without_room = 0

    def failed(
        self, head: PlanHead, step: Step, error: JobError, backoff_s: float, now: datetime
    ) -> str:
        """Store it; what the plan waits for, in one line, if not just for the next attempt."""
        if error.kind == NO_ROOM:
            return self._wait_for_room(head, step, error, now)
        if error.kind == PROBE_MISMATCH:
            requests.forget_probe(self._ledger)
        pause = timedelta(seconds=pause_s(head.attempts + 1, backoff_s))
        self._ledger.steps.failed(head.id, step, error.error, error.kind, now + pause, now)
        log.warning("stage failed", plan=head.id, stage=step.value, error=error.error)
        crowded = error.kind == NO_SPACE and head.kind is PlanKind.LEARN and head.parent > 0
        if crowded:
            kept = {"error": error.error, "error_kind": error.kind}
            self._ledger.plans.move(head.id, head.state, PlanState.CANCELLED, now, **kept)
        elif error.final or error.kind == NO_SPACE:
            self._end(head, PlanState.FAILED, now, error.error)
        return ""

    def _wait_for_room(self, head: PlanHead, step: Step, error: JobError, now: datetime) -> str:
        """A full disk is no fault of the plan: no attempt is used up, and it goes on by itself."""
        self._without_room += 1
        seconds = pause_s(self._without_room, *ROOM_AGAIN_S)
        not_before = now + timedelta(seconds=seconds)
        self._ledger.steps.failed(
            head.id, step, error.error, error.kind, not_before, now, attempts=0
        )
        log.warning(
            "no room", plan=head.id, stage=step.value, again_in_s=seconds, error=error.error
        )
        return f"plan {head.id} waits for room and goes on by itself: {error.error}"
