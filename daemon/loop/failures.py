"""A step that failed: tried again after a pause, given up, or put off until it can be done."""

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
POSTPONED: Final = {
    NO_ROOM: "waits for room and goes on by itself",
    "ClusterUnreachable": "waits for the cluster and goes on by itself",
}
"""Kinds of errors that use up no attempt, and what to say of the plan."""
AGAIN_S: Final = (1.0, 300.0)

log = structlog.get_logger(__name__)


class Failures:
    """Stores what a failure means for its plan."""

    def __init__(
        self, ledger: Ledger, end: Callable[[PlanHead, PlanState, datetime, str], None]
    ) -> None:
        """`end` ends a plan in a state, at a time, because of something."""
        self._ledger = ledger
        self._end = end
        self._postponements = 0

    def finished(self) -> None:
        """A step has found what it needs."""
        self._postponements = 0

    def failed(
        self, head: PlanHead, step: Step, error: JobError, backoff_s: float, now: datetime
    ) -> str:
        """Store it; what the plan waits for, in one line, if not just for the next attempt."""
        if error.kind in POSTPONED:
            return self._postponed(head, step, error, now)
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

    def _postponed(self, head: PlanHead, step: Step, error: JobError, now: datetime) -> str:
        """It is no fault of the plan: no attempt is used up, and it goes on by itself."""
        self._postponements += 1
        seconds = pause_s(self._postponements, *AGAIN_S)
        not_before = now + timedelta(seconds=seconds)
        self._ledger.steps.failed(
            head.id, step, error.error, error.kind, not_before, now, attempts=0
        )
        log.warning(
            "stage postponed",
            plan=head.id,
            stage=step.value,
            again_in_s=seconds,
            error=error.error,
        )
        return f"plan {head.id} {POSTPONED[error.kind]}: {error.error}"
