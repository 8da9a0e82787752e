"""Batches become revisions: records what children did, and begins one action a tick."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import ValidationError

from daemon.children.jobs import JobError, Jobs, Progress, held, last_progress, started_at
from daemon.children.request import remove_rows
from daemon.cluster import attempts
from daemon.config.settings import Settings
from daemon.gate.messages import EvaluationReport
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Lease, PlanHead
from daemon.loop import requests
from daemon.loop.beside import Beside
from daemon.loop.failures import Failures
from daemon.loop.rollout import Rollout
from daemon.loop.sharing import ON_GPU, Separate, Sharing
from daemon.loop.waits import Waits
from daemon.serving.replica_status import NotServed
from daemon.training.messages import ProbeReport, TrainDone
from policies.errors import (
    LedgerBusy,
    PaloradError,
    ServerRefused,
    ServerUnreachable,
    StateConflict,
    Superseded,
)
from policies.gate.records import Outcome
from policies.planning import (
    Action,
    Clear,
    Discard,
    GiveUp,
    MakePlan,
    Promote,
    Run,
    Snapshot,
    StartCanary,
    Step,
    next_action,
)
from policies.records import PlanState

WITHOUT_PLAN: Final = 0
WAIT_FOR_SERVER_S: Final = 2.0
PROBE_AGAIN_S: Final = 60.0
NO_RIGHT: Final = frozenset({401, 403})
STATE_AFTER: Final = {
    Outcome.PASS: PlanState.PASSED,
    Outcome.FAIL: PlanState.REJECTED,
    Outcome.INCONCLUSIVE: PlanState.INCONCLUSIVE,
}

log = structlog.get_logger(__name__)


class Reconciler:
    """Collects what children have done, decides the next action and does it."""

    def __init__(
        self,
        ledger: Ledger,
        jobs: Jobs,
        rollout: Rollout,
        settings: Settings,
        changed: Callable[[tuple[str, ...]], None] = lambda _: None,
        holds: Callable[[], bool] = lambda: False,
        worded: Callable[[PlanHead], Awaitable[bool]] | None = None,
        sharing: Sharing | Separate | None = None,
        marked: Callable[[Snapshot], Snapshot] = lambda snapshot: snapshot,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`changed` hears of batches whose state may have changed. While `holds`, nothing new is
        begun. A plan is trained once `worded` says that its facts have their paraphrases and
        `sharing` that the GPU has room. `marked` says that a plan is a canary first."""
        self._ledger = ledger
        self._jobs = jobs
        self._rollout = rollout
        self.settings = settings
        self._layout = settings.layout
        self._changed = changed
        self._holds = holds
        self._worded = worded
        self._sharing = sharing or Separate()
        self._marked = marked
        self._clock = clock
        self.waits = Waits(clock)
        self._not_before = clock()
        self.waits_for: str = ""
        self._failures = Failures(ledger, self._end)
        self.beginning: Beside[Action | None] = Beside()

    # --- planning ------------------------------------------------------------------------------

    async def tick(self, now: datetime) -> Action | None:
        """Record what children did, then begin at most one action; which one, once it is begun.
        What waits for the server, or for a request of many facts, goes on beside later ticks."""
        for lease in self._ledger.steps.leases():
            self._collect(lease, now)
        if self.beginning.under_way:
            return await self.beginning.outcome()
        if self._holds():
            return None
        probe = requests.remembered_probe(self._ledger, self.settings)
        if probe is None and self.settings.probe.serve == "expert":
            if self._clock() >= self._not_before:
                await self._probe(WITHOUT_PLAN, now)
            return None
        snapshot = self._ledger.planning.snapshot(
            now, requests.limits_of(self.settings), probe_ready=probe is not None
        )
        action = next_action(self._marked(self.waits.counted(snapshot, now)), now)
        return await self.beginning.begin(self._do(action, probe, now)) if action else None

    async def _do(self, action: Action, probe: ProbeReport | None, now: datetime) -> Action | None:
        """Begin an action; None where that is not possible now."""
        match action:
            case MakePlan():
                plan = self._ledger.planning.make_plan(
                    action, now, max_replay=self.settings.train.max_replay
                )
                log.info("plan made", plan=plan.id, kind=plan.kind, because=action.because)
            case Run():
                head = self._ledger.plans.head(action.plan)
                return action if await self._run(head, action.step, probe, now) else None
            case StartCanary():
                self._ledger.plans.move(action.plan, PlanState.PASSED, PlanState.CANARY, now)
            case Promote():
                self._promote(self._ledger.plans.head(action.plan), now)
            case Discard():
                self._discard(self._ledger.plans.head(action.plan), action.because, now)
            case GiveUp():
                head = self._ledger.plans.head(action.plan)
                because = f"{action.because}: {head.error}" if head.error else action.because
                self._end(head, PlanState.FAILED, now, because=because)
            case Clear():
                self._ledger.revisions.rollback(0, action.because, now)
        return action

    async def _run(
        self, plan: PlanHead, step: Step, probe: ProbeReport | None, now: datetime
    ) -> bool:
        if held(self._layout.workdir(plan.id, step)):
            return False
        if step is Step.PROBE or probe is None:
            return await self._probe(plan.id, now)
        try:
            if step is Step.EVALUATE and not await self._staged(plan, now):
                return False
            if step is Step.TRAIN and not await self._trainable(plan):
                return False
            write = partial(self._jobs.prepare, self._layout.workdir(plan.id, step))
            await requests.write_request(self._ledger, self.settings, plan, step, probe, now, write)
        except LedgerBusy:
            raise
        except PaloradError as error:
            broken = JobError(
                kind=type(error).__name__, error=str(error), final=isinstance(error, NotServed)
            )
            self._failed(plan, step, broken, now)
            return False
        # Somebody may have decided otherwise while the request was put together.
        room = step is not Step.TRAIN or await self._sharing.room(plan.id, step)
        unmoved = self._ledger.plans.head(plan.id).state is plan.state
        return room and unmoved and self._start(plan.id, step, now)

    async def _probe(self, plan_id: int, now: datetime) -> bool:
        workdir = self._layout.workdir(plan_id, Step.PROBE)
        if self._taken(workdir):
            return False
        await asyncio.to_thread(self._jobs.prepare, workdir, requests.probe_request(self.settings))
        if not await self._sharing.room(plan_id, Step.PROBE):
            return False
        return self._start(plan_id, Step.PROBE, now)

    async def _trainable(self, plan: PlanHead) -> bool:
        """Whether the plan's facts are worded, for which the server is asked, and the GPU has
        room, for which the server may have to sleep: in this order."""
        if not self._sharing.keeps(plan.id):
            return False
        if self._worded is not None and not await self._worded(plan):
            return False
        return await self._sharing.room(plan.id, Step.TRAIN)

    async def _staged(self, plan: PlanHead, now: datetime) -> bool:
        """Whether the candidate is loaded and verified; a server that is away is waited for."""
        if not self._sharing.awake() or self._clock() < self._not_before:
            return False
        name = plan.served.name if plan.served else ""
        try:
            await self._rollout.stage(name)
        except (ServerUnreachable, ServerRefused) as error:
            if isinstance(error, ServerRefused) and error.status not in NO_RIGHT:
                raise
            self._not_before = self._clock() + WAIT_FOR_SERVER_S
            self.waits_for = f"plan {plan.id} waits for the server: {error}"
            return False
        self.waits_for = ""
        return True

    def _start(self, plan_id: int, step: Step, now: datetime) -> bool:
        workdir = self._layout.workdir(plan_id, step)
        if self._taken(workdir):
            return False
        pid = self._jobs.start(step.value, workdir)
        deadline = now + timedelta(seconds=self.settings.train.deadline_s)
        self._ledger.steps.lease(plan_id, step, pid, str(started_at(pid)), deadline, now)
        self.waits.seen(self._ledger.steps.leases())
        self.waits_for = ""
        log.info("stage started", plan=plan_id, stage=step.value, pid=pid)
        return True

    # --- what children have done ---------------------------------------------------------------

    def _collect(self, lease: Lease, now: datetime) -> None:
        workdir = self._layout.workdir(lease.plan, lease.step)
        seen = self._jobs.poll(workdir)
        if seen.outcome == "running":
            at = seen.progress
            if self.waits.overdue(lease, None if at is None else (at.stage, at.done)):
                self._jobs.kill(workdir)
                late = f"the {lease.step} stage made no progress for train.deadline_s"
                late += f" ({lease.allowed_s:.0f} s)"
                self._lease_failed(lease, JobError(kind="Deadline", error=late), now)
        elif seen.outcome == "absent":
            self._ledger.steps.interrupted(lease.plan, lease.step, now)
            log.info("stage interrupted", plan=lease.plan, stage=lease.step.value)
        elif seen.outcome == "failed" and seen.error is not None:
            self._lease_failed(lease, seen.error, now)
        elif seen.report is not None:
            try:
                self._finished(lease, seen.report, now)
            except (ValidationError, StateConflict) as error:
                first_line = str(error).splitlines()[0]
                unusable = JobError(kind=type(error).__name__, error=first_line, final=True)
                (workdir / "report.json").unlink(missing_ok=True)
                self._lease_failed(lease, unusable, now)

    def _finished(self, lease: Lease, report: Mapping[str, Any], now: datetime) -> None:
        if lease.step is Step.PROBE:
            requests.remember_probe(self._ledger, self.settings, ProbeReport.model_validate(report))
            self._ledger.steps.release(lease.plan, lease.step)
            # The next plan has its own directory, and another base is probed again.
            shutil.rmtree(self._layout.workdir(lease.plan, lease.step), ignore_errors=True)
            return
        self._failures.finished()
        head = self._ledger.plans.head(lease.plan)
        if lease.step is Step.TRAIN:
            done = TrainDone.model_validate(report)
            self._ledger.steps.trained(lease.plan, done.adapter, done.served, now)
        else:
            judged = EvaluationReport.model_validate(report)
            to = STATE_AFTER[judged.verdict.outcome]
            self._ledger.steps.judged(lease.plan, judged.verdict, judged.scorecards, to, now)
            log.info("judged", plan=lease.plan, outcome=judged.verdict.outcome.value)
            self._changed(self._ledger.plans.batches(head.id))
        remove_rows(self._layout.workdir(lease.plan, lease.step))

    def _lease_failed(self, lease: Lease, error: JobError, now: datetime) -> None:
        if lease.plan == WITHOUT_PLAN:
            self._ledger.steps.release(lease.plan, lease.step)
            self._not_before = self._clock() + PROBE_AGAIN_S
            self.waits_for = f"no server without the probe's expert: {error.error}"
            return
        self._failed(self._ledger.plans.head(lease.plan), lease.step, error, now)

    def _failed(self, head: PlanHead, step: Step, error: JobError, now: datetime) -> None:
        backoff_s = self.settings.train.backoff_s
        self.waits_for = self._failures.failed(head, step, error, backoff_s, now)

    # --- moving --------------------------------------------------------------------------------

    def _promote(self, head: PlanHead, now: datetime) -> None:
        if head.served is None:
            raise StateConflict(f"plan {head.id} has published nothing to serve")
        try:
            revision = self._ledger.revisions.promote(
                head.id, head.served, now, relearn=self.settings.train.relearn
            )
        except Superseded as error:
            self._end(head, PlanState.CANCELLED, now, because=str(error))
            return
        log.info("promoted", plan=head.id, revision=revision.number, name=revision.served_name)
        self._tidy(head.id)
        self._changed(self._ledger.plans.batches(head.id))

    def _discard(self, head: PlanHead, because: str, now: datetime) -> None:
        for lease in self._ledger.steps.leases():
            if lease.plan == head.id:
                self._jobs.kill(self._layout.workdir(lease.plan, lease.step))
                self._ledger.steps.release(lease.plan, lease.step)
        self._end(head, PlanState.CANCELLED, now, because=because)

    def _end(self, head: PlanHead, to: PlanState, now: datetime, because: str) -> None:
        self._ledger.plans.move(head.id, head.state, to, now, because=because)
        log.info("plan ended", plan=head.id, state=to.value, because=because)
        if to is PlanState.CANCELLED:
            self._tidy(head.id)
        self._changed(self._ledger.plans.batches(head.id))

    def _tidy(self, plan_id: int) -> None:
        for step in Step:
            attempts.clear(self._layout.workdir(plan_id, step))

    # --- what status and the GPU's sharing ask ---------------------------------------------------

    def progress(self) -> Progress | None:
        """How far the running child is."""
        for lease in self._ledger.steps.leases():
            return last_progress(self._layout.workdir(lease.plan, lease.step))
        return None

    def on_gpu(self) -> bool:
        """Whether a child runs that computes on the GPU."""
        leases = (lease for lease in self._ledger.steps.leases() if lease.step in ON_GPU)
        return any(self._taken(self._layout.workdir(lease.plan, lease.step)) for lease in leases)

    def _taken(self, workdir: Path) -> bool:
        return workdir in self._jobs.running() or held(workdir)

    async def stop(self, patience_s: float) -> None:
        """End the children at their next checkpoint, at last by force; nothing counts as failed."""
        await self.beginning.stop()
        leases = self._ledger.steps.leases()
        for lease in leases:
            self._jobs.cancel(self._layout.workdir(lease.plan, lease.step))
        try:
            async with asyncio.timeout(patience_s):
                while self._jobs.running():  # noqa: ASYNC110 - processes set no asyncio.Event
                    await asyncio.sleep(0.05)
        except TimeoutError:
            log.warning("children did not stop in time", seconds=patience_s)
        for lease in leases:
            workdir = self._layout.workdir(lease.plan, lease.step)
            if self._jobs.poll(workdir).outcome != "finished":
                self._jobs.kill(workdir)
                self._ledger.steps.release(lease.plan, lease.step)
