"""The canary in the running daemon: which there is, what is seen of it, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol

import structlog

from daemon.config.canary import CanarySettings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import PlanHead
from daemon.serving.alias import PINNED
from daemon.serving.pointer import Canary
from daemon.views.canary import CanaryView
from policies.canary import Traffic, harm, look_number
from policies.planning import Snapshot
from policies.records import PlanKind, PlanState

MINUTE_S: Final = 60.0

log = structlog.get_logger(__name__)


class CanaryReplicas(Protocol):
    """What is needed of `daemon.serving.fleet.Fleet`."""

    @property
    def canary(self) -> Canary | None:
        """What answers a share of the requests now."""
        ...

    def traffic(self, name: str) -> Traffic:
        """What users asked of a revision since there is a canary."""
        ...

    async def unsound(self, name: str) -> str | None:
        """What a replica answers otherwise than the published revision."""
        ...


class CanaryRun:
    """A plan in the state `canary` is one until its time is over or something speaks against it.

    What is durable is the plan's state. The time is counted by the clock of this process, from when
    the canary is first seen to answer, so that a daemon that was away begins it anew.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: CanarySettings,
        replicas: CanaryReplicas,
        changed: Callable[[tuple[str, ...]], None],
        wake: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """`changed` hears of batches whose state has changed; `clock` only ever grows."""
        self._ledger, self._settings, self._replicas = ledger, settings, replicas
        self._changed, self._wake, self._clock = changed, wake, clock
        self._plan = self._look = 0
        self._since: float | None = None
        self._begun = 0.0
        self._over: int | None = None

    # --- what there is -------------------------------------------------------------------------

    def _head(self) -> PlanHead | None:
        """The plan whose candidate is the canary; None where there is none, or must not be."""
        if not self._settings.minutes:
            return None
        head = self._ledger.plans.open_plan()
        if head is None or head.state is not PlanState.CANARY or head.served is None:
            return None
        target = self._ledger.revisions.target()
        fits = self._ledger.revisions.get(head.parent).lineage == target.lineage
        return head if fits and not self._ledger.knowledge.knows_retracted(head.id) else None

    def wanted(self) -> Canary | None:
        """What is to answer a share of the requests beside the target."""
        head = self._head()
        named = PINNED.match(head.served.name) if head is not None and head.served else None
        if named is None:
            return None
        return Canary(model=named[0], revision=int(named[1]), share=self._settings.share)

    def marked(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot, saying whether the plan under way is to be a canary, or still is one.

        What replaces a revision that must go does not wait.
        """
        plan = snapshot.open
        waits = (
            plan is not None
            and bool(self._settings.minutes)
            and plan.kind is not PlanKind.RETRACT
            and plan.id != self._over
            and not self._ledger.knowledge.is_tainted(snapshot.lineage)
        )
        if plan is None or not waits:
            return snapshot
        return snapshot.model_copy(update={"open": plan.model_copy(update={"canary": True})})

    # --- what becomes of it --------------------------------------------------------------------

    async def step(self, now: datetime) -> None:
        """Look at what the replicas say of the canary: reject it, let it go live, or wait."""
        head, wanted = self._head(), self.wanted()
        if head is None or wanted is None:
            self._plan = 0
            return
        if head.id != self._plan:
            self._plan, self._look, self._since = head.id, 0, None
            self._begun = self._clock()
        if self._replicas.canary != wanted:
            if self._clock() - self._begun >= self._settings.minutes * MINUTE_S:
                self._reject(head, "no replica could serve it", now)
            return
        if self._since is None:
            self._since = self._clock()
        over = self._clock() - self._since >= self._settings.minutes * MINUTE_S
        problem = self._harm(wanted, over=over)
        if problem is None and over:
            problem = await self._replicas.unsound(wanted.model)
            if self._head() != head:  # somebody has decided otherwise meanwhile
                return
        if problem is not None:
            self._reject(head, problem, now)
        elif over:
            self._over = head.id
            log.info("the canary did no harm", plan=head.id, model=wanted.model)
            self._wake()

    def _harm(self, canary: Canary, *, over: bool) -> str | None:
        tried, live = self._traffic(canary)
        look = look_number(tried.requests)
        if look <= self._look and not over:
            return None
        self._look = max(look, self._look + 1)
        return harm(tried, live, slower=self._settings.slower, look=self._look)

    def _traffic(self, canary: Canary) -> tuple[Traffic, Traffic]:
        target = self._ledger.revisions.target()
        return self._replicas.traffic(canary.model), self._replicas.traffic(target.served_name)

    def _reject(self, head: PlanHead, problem: str, now: datetime) -> None:
        because = f"as a canary: {problem}"
        self._ledger.plans.move(head.id, PlanState.CANARY, PlanState.REJECTED, now, because=because)
        log.warning("the canary is withdrawn", plan=head.id, because=problem)
        self._changed(self._ledger.plans.batches(head.id))
        self._wake()

    # --- what status shows ---------------------------------------------------------------------

    @property
    def line(self) -> str:
        """What there is to know of the canary in one line; empty where there is none."""
        found = self.view()
        return "" if found is None else found.line

    def view(self) -> CanaryView | None:
        """The canary and what it has answered so far."""
        head, canary = self._head(), self.wanted()
        if head is None or canary is None:
            return None
        tried, live = self._traffic(canary)
        left = self._settings.minutes * MINUTE_S
        if self._since is not None and self._plan == head.id:
            left = max(0.0, left - (self._clock() - self._since))
        return CanaryView(
            plan=head.id,
            revision=canary.revision,
            name=canary.model,
            share=canary.share,
            answers=self._replicas.canary == canary,
            left_s=round(left, 1),
            canary=tried,
            live=live,
        )
