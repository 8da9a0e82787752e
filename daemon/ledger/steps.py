"""Stages of plans: leases, what children published, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from daemon.ledger.database import Database, stamp, unstamp
from daemon.ledger.plans import Plans
from daemon.ledger.records import Adapter, Lease, Served
from daemon.ledger.removals import Removals
from policies.errors import NotFound
from policies.gate.records import Scorecard, Verdict
from policies.planning import Step
from policies.records import Plan, PlanState


class Steps:
    """Which child works on what, and what came of it."""

    def __init__(self, db: Database, plans: Plans, removals: Removals) -> None:
        self._db = db
        self._plans = plans
        self._removals = removals

    def failed(
        self,
        plan_id: int,
        step: Step,
        error: str,
        kind: str,
        not_before: datetime,
        now: datetime,
        *,
        attempts: int = 1,
    ) -> None:
        """A stage of an open plan is not done: none before `not_before`.

        It used up one of the plan's attempts, or none where it only has to wait.
        """
        with self._db.write("failed"):
            self._drop_lease(plan_id, step)
            self._db.do(
                "UPDATE plans SET attempts = attempts + ?, not_before = ?, error = ?,"
                " error_kind = ? WHERE id = ?",
                (attempts, stamp(not_before), error, kind, plan_id),
            )
            payload = {"stage": step, "error": error, "kind": kind}
            event = "stage.failed" if attempts else "stage.postponed"
            self._db.event(event, f"plan:{plan_id}", payload, now)

    def interrupted(self, plan_id: int, step: Step, now: datetime) -> None:
        """A stage ended without a word because the daemon did: its lease is given up."""
        with self._db.write("interrupted"):
            if self._drop_lease(plan_id, step):
                self._db.do(
                    "UPDATE plans SET interruptions = interruptions + 1 WHERE id = ?", (plan_id,)
                )
                self._db.event("stage.interrupted", f"plan:{plan_id}", {"stage": step}, now)

    def trained(self, plan_id: int, adapter: Adapter, served: Served, now: datetime) -> Plan:
        """PLANNED → TRAINED with what was published, in one transaction."""
        with self._db.write("trained"):
            self._plans.set_state(plan_id, PlanState.PLANNED, PlanState.TRAINED, now)
            self._adapter(plan_id, adapter, now)
            self._db.do(
                "UPDATE plans SET served = ? WHERE id = ?", (served.model_dump_json(), plan_id)
            )
            self._removals.published(adapter.sha256, served.name)
            self._drop_lease(plan_id, Step.TRAIN)
        return self._plans.get(plan_id)

    def _adapter(self, plan_id: int, adapter: Adapter, now: datetime) -> None:
        self._db.do(
            "INSERT OR REPLACE INTO adapters VALUES (?, ?, ?, ?)",
            (adapter.sha256, plan_id, adapter.rank, self._db.at(now)),
        )
        self._db.do("UPDATE plans SET adapter = ? WHERE id = ?", (adapter.sha256, plan_id))

    def adapter(self, sha256: str) -> Adapter:
        """One adapter by its hash; raises `NotFound`."""
        row = self._db.row("SELECT sha256, rank FROM adapters WHERE sha256 = ?", (sha256,))
        if row is None:
            raise NotFound(f"no adapter {sha256}")
        return Adapter(sha256=row[0], rank=row[1])

    # --- verdicts ------------------------------------------------------------------------------

    def judged(
        self,
        plan_id: int,
        verdict: Verdict,
        scorecards: Sequence[Scorecard],
        to: PlanState,
        now: datetime,
    ) -> Plan:
        """TRAINED → what the verdict says, with the verdict, in one transaction."""
        with self._db.write("judged"):
            self._plans.set_state(
                plan_id,
                PlanState.TRAINED,
                to,
                now,
                because="; ".join(verdict.reasons) or verdict.rule,
            )
            self._verdict(plan_id, verdict, scorecards, now)
            self._drop_lease(plan_id, Step.EVALUATE)
        return self._plans.get(plan_id)

    def _verdict(
        self, plan_id: int, verdict: Verdict, scorecards: Sequence[Scorecard], now: datetime
    ) -> None:
        self._db.do(
            "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)",
            (plan_id, verdict.model_dump_json(), self._db.at(now)),
        )
        self._db.do("DELETE FROM scorecards WHERE plan = ?", (plan_id,))
        self._db.do_all(
            "INSERT INTO scorecards VALUES (?, ?, ?, ?)",
            [(plan_id, c.model, c.sha256, c.model_dump_json()) for c in scorecards],
        )

    def verdict(self, plan_id: int) -> Verdict | None:
        """The gate's verdict on a plan, if there is one."""
        body = self._db.one("SELECT body FROM verdicts WHERE plan = ?", (plan_id,))
        return None if body is None else Verdict.model_validate_json(body)

    def latest_verdict(self) -> Verdict | None:
        """The gate's latest verdict on any plan, if there is one."""
        body = self._db.one("SELECT body FROM verdicts ORDER BY plan DESC LIMIT 1")
        return None if body is None else Verdict.model_validate_json(body)

    def scorecards(self, plan_id: int) -> tuple[Scorecard, ...]:
        """What the verdict of a plan rests on."""
        rows = self._db.rows(
            "SELECT body FROM scorecards WHERE plan = ? ORDER BY model", (plan_id,)
        )
        return tuple(Scorecard.model_validate_json(row[0]) for row in rows)

    # --- leases --------------------------------------------------------------------------------

    def lease(
        self,
        plan_id: int,
        step: Step,
        pid: int,
        pid_started: str,
        deadline: datetime,
        now: datetime,
    ) -> None:
        """A child works on this stage from now on, `deadline - now` long at most."""
        with self._db.write("lease"):
            at = self._db.at(now)
            until = stamp(unstamp(at) + (deadline - now))
            self._db.do(
                "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?)",
                (plan_id, step.value, pid, pid_started, until, at),
            )
            self._db.event("stage.started", f"plan:{plan_id}", {"stage": step}, now)

    def release(self, plan_id: int, step: Step) -> None:
        """No child works on this stage any more."""
        with self._db.write("release"):
            self._drop_lease(plan_id, step)

    def _drop_lease(self, plan_id: int, step: Step) -> int:
        return self._db.do("DELETE FROM leases WHERE plan = ? AND step = ?", (plan_id, step.value))

    def leases(self) -> tuple[Lease, ...]:
        """Who works on what."""
        rows = self._db.rows("SELECT * FROM leases ORDER BY plan, step")
        return tuple(
            Lease(
                plan=plan,
                step=Step(step),
                pid=pid,
                pid_started=pid_started,
                deadline=unstamp(deadline),
                started_at=unstamp(started_at),
            )
            for plan, step, pid, pid_started, deadline, started_at in rows
        )
