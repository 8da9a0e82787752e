"""What is served follows the ledger's target, on every replica; candidates are staged beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final, Protocol

import structlog

from daemon.ledger.ledger import Ledger
from daemon.serving.fleet import Ensured
from daemon.serving.pointer import Canary
from daemon.serving.replica_status import ReplicaStatus
from daemon.views.status import ReplicaView
from policies.errors import NotFound, ServerUnreachable
from policies.records import PlanState, Revision

LOOK_S: Final = 0.1
SETTLED_SERVE_S: Final = 2.0
# A hundred replicas take a second to be asked: while the target stands, other work goes on too.
REST_PER_LOOK: Final = 3.0
LONGEST_REST_S: Final = 5.0

log = structlog.get_logger(__name__)


class Replicas(Protocol):
    """What is needed of `daemon.serving.fleet.Fleet`."""

    @property
    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """What was seen last."""
        ...

    async def ensure(
        self,
        target: Revision,
        previous: Revision | None = None,
        keep: tuple[str, ...] = (),
        is_target: Callable[[], bool] = ...,
        may_stay: Callable[[int], bool] = ...,
        canary: Callable[[], Canary | None] = ...,
    ) -> Ensured:
        """Bring every replica to `target`, unless it stops being the target before the flip."""
        ...

    @property
    def canary(self) -> Canary | None:
        """What answers a share of the requests beside the target."""
        ...

    async def stage(self, name: str) -> object:
        """Load and verify a candidate on the first replica."""
        ...


def replica_views(statuses: Sequence[ReplicaStatus], target: Revision) -> tuple[ReplicaView, ...]:
    """What status shows of the replicas, all of which should answer from `target`."""
    return tuple(
        ReplicaView(
            url=status.url,
            ready=status.healthy and status.active == target.served_name,
            target=target.served_name,
            healthy=status.healthy,
            asleep=status.asleep,
            loaded=status.loaded,
            active=status.active,
            verified_at=status.verified_at,
            reason=status.reason,
            passing=status.asleep or status.at_work,
        )
        for status in statuses
    )


def rest_s(took_s: float, *, done: bool) -> float:
    """How long the replicas are not looked at after a look, while the target stays what it is."""
    return max(min(LONGEST_REST_S, took_s * REST_PER_LOOK), SETTLED_SERVE_S if done else 0.0)


class Rollout:
    """Promotion and rollback alike: the ledger names a target, `serve` brings the fleet to it."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Replicas,
        canary: Callable[[], Canary | None] = lambda: None,
    ) -> None:
        """`canary`: what the ledger wants to answer a share of the requests beside the target."""
        self._ledger = ledger
        self._canary = canary
        self._fleet = fleet
        self._one_at_a_time = asyncio.Lock()
        self._served: Revision | None = None

    @property
    def settled(self) -> bool:
        """Whether the fleet's target is the ledger's, and no alias answers from anything else."""
        if self._served is None or self._served != self._ledger.revisions.target():
            return False
        return self._fleet.canary in (None, self._canary())

    async def serve(self, now: datetime) -> Ensured:
        """Bring the replicas to the ledger's target; a target that changes meanwhile wins."""
        async with self._one_at_a_time:
            # Read only now: what held the fleet may have taken seconds.
            target = self._ledger.revisions.target()
            self._served = None
            ensured = await self._fleet.ensure(
                target,
                self._rollback_goal(target),
                self._under_evaluation(),
                is_target=lambda: self._ledger.revisions.target() == target,
                may_stay=self._may_stay,
                canary=self._canary,
            )
            if ensured.answering:
                self._served = target
        if ensured.steps:
            self._ledger.events.record(
                "served", f"revision:{target.number}", {"steps": ensured.steps}, now
            )
            log.info("served", revision=target.number, steps=ensured.steps)
        return ensured

    async def release(self) -> None:
        """Return once nothing is under way; what is served counts as unknown from then on."""
        async with self._one_at_a_time:
            self._served = None

    async def stage(self, name: str) -> None:
        """Load and verify a candidate; raises as `Fleet.stage` does.

        What is to be served goes first: when the target moves, it raises `ServerUnreachable`.
        """
        async with self._one_at_a_time:
            target = self._ledger.revisions.target()
            staging = asyncio.ensure_future(self._fleet.stage(name))
            try:
                while not (await asyncio.wait([staging], timeout=LOOK_S))[0]:
                    if self._ledger.revisions.target() != target:
                        raise ServerUnreachable("the target has moved: the candidate waits")
                await staging
            finally:
                staging.cancel()

    def _may_stay(self, number: int) -> bool:
        """Whether this revision may answer a little longer: it was neither rolled back nor does
        it know a fact that was retracted."""
        try:
            revision = self._ledger.revisions.get(number)
        except NotFound:
            return False
        if self._ledger.knowledge.is_tainted(revision.lineage):
            return False
        if revision.plan_id is None:
            return True
        return self._ledger.plans.head(revision.plan_id).state is PlanState.LIVE

    def _rollback_goal(self, target: Revision) -> Revision | None:
        """The parent, which stays loaded for a rollback; None where it must never be served."""
        if target.parent is None:
            return None
        parent = self._ledger.revisions.get(target.parent)
        return None if self._ledger.knowledge.is_tainted(parent.lineage) else parent

    def _under_evaluation(self) -> tuple[str, ...]:
        opened = self._ledger.plans.open_plan()
        return (opened.served.name,) if opened is not None and opened.served else ()
