"""The ledger: everything that is durably true, in one SQLite file."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from daemon.ledger.records import PlanHead
from daemon.ledger.retractions import LedgerRetractions
from policies.errors import Refused
from policies.planning import REBUILDS, Limits, MakePlan, OpenPlan, Snapshot
from policies.records import OPEN_STATES, BatchState, Plan, PlanKind, PlanState, Revision

NO_SPACE: Final = "NoFreeSpace"
_REBUILDS: Final = ",".join(f"'{kind.value}'" for kind in sorted(REBUILDS))
_SETTLED: Final = {
    PlanState.LIVE: BatchState.LIVE,
    PlanState.ROLLED_BACK: BatchState.ROLLED_BACK,
    PlanState.REJECTED: BatchState.REJECTED,
    PlanState.INCONCLUSIVE: BatchState.INCONCLUSIVE,
    PlanState.FAILED: BatchState.FAILED,
}


class Ledger(LedgerRetractions):
    """What planning and people ask of the parts together."""

    _grown: tuple[tuple[int, int], tuple[int, int]] | None = None

    # --- planning ------------------------------------------------------------------------------

    def snapshot(self, now: datetime, limits: Limits, *, probe_ready: bool = True) -> Snapshot:
        """What planning needs; quick however many facts there are."""
        target, under_way = self.target(), self.open_plan()
        common = Snapshot(
            limits=limits,
            paused=self.paused,
            probe_ready=probe_ready,
            lineage=target.lineage,
            open=None if under_way is None else self._opened(under_way, target),
        )
        if common.open is not None:
            return common
        ranks = tuple(self.adapter(sha256).rank for sha256 in target.lineage)
        forbidden = self.forbidden_count(target.lineage)
        no_space = self._had_no_space(target)
        waiting = self.waiting(now, limits.max_facts)
        needs_known = bool(forbidden) or no_space or bool(waiting)
        idle = bool(target.lineage) and not (forbidden or waiting)
        began_with, gone_on = self._growth(target) if idle and limits.retrain_at else (0, 0)
        return common.model_copy(
            update={
                "ranks": ranks,
                "known": self.known_count(target.lineage, now) if needs_known else 0,
                "forbidden": forbidden,
                "refused_rebuilds": self._refused_rebuilds(target),
                "no_space": no_space,
                "began_with": began_with,
                "gone_on": gone_on,
                "waiting": waiting,
            }
        )

    def _growth(self, target: Revision) -> tuple[int, int]:
        """How many facts the last adapter on the bare base learnt, and how many came since.

        Counted once for each revision and plan: it is asked for at every look.
        """
        newest = int(self._one("SELECT coalesce(max(id), 0) FROM plans"))
        if self._grown is None or self._grown[0] != (target.number, newest):
            last = int(
                self._one(
                    f"SELECT coalesce(max(id), 0) FROM plans WHERE (kind IN ({_REBUILDS})"
                    " AND state <> 'cancelled') OR (replaces = '[]' AND state = 'live')"
                )
            )
            began_with = self._one(
                "SELECT count(*) FROM plan_facts WHERE plan = ? AND role = 'learn'", (last,)
            )
            gone_on = self._one(
                "SELECT count(*) FROM plan_facts p JOIN plans ON plans.id = p.plan"
                " WHERE p.plan > ? AND p.role = 'learn' AND plans.state = 'live'",
                (last,),
            )
            self._grown = (target.number, newest), (int(began_with), int(gone_on))
        return self._grown[1]

    def _opened(self, head: PlanHead, target: Revision) -> OpenPlan:
        builds_on = self.revision(head.parent).lineage == target.lineage
        fits = builds_on and not self._knows_retracted(head.id)
        leased = self._one("SELECT 1 FROM leases WHERE plan = ?", (head.id,))
        return OpenPlan(
            **head.model_dump(
                include={"id", "kind", "state", "attempts", "interruptions", "not_before"}
            ),
            fits=fits,
            leased=bool(leased),
        )

    def _had_no_space(self, target: Revision) -> bool:
        found = self._one(
            "SELECT 1 FROM plans"
            " WHERE parent = ? AND error_kind = ? AND state = 'cancelled' LIMIT 1",
            (target.number, NO_SPACE),
        )
        return bool(found)

    def _refused_rebuilds(self, target: Revision) -> int:
        return int(
            self._one(
                f"SELECT count(*) FROM plans WHERE parent = ? AND kind IN ({_REBUILDS})"
                " AND state IN ('rejected', 'inconclusive', 'failed')",
                (target.number,),
            )
        )

    def make_plan(self, action: MakePlan, now: datetime, *, max_replay: int) -> Plan:
        """The plan that planning decided on, its facts and what it replays filled in.

        A rebuild learns every valid fact of the lineage. A `learn` plan goes on knowing those of
        the adapters that it replaces (`again`), and replays an even sample of the others.
        """
        target = self.target()
        everything = 1 << 62
        replaced = self.known_ids(action.replaces, now, everything)
        rebuilds = action.kind in REBUILDS
        facts, again = (replaced, ()) if rebuilds else (action.fact_ids, replaced)
        kept = [sha256 for sha256 in target.lineage if sha256 not in action.replaces]
        replay = self.known_ids(kept, now, max_replay)
        learnt = {*facts, *again}
        return self.create_plan(
            action.kind,
            parent=target.number,
            replaces=action.replaces,
            fact_ids=facts,
            relearn_ids=[fact_id for fact_id in again if fact_id not in set(facts)],
            replay_ids=[fact_id for fact_id in replay if fact_id not in learnt],
            rank=action.rank,
            seed=action.seed,
            because=action.because,
            now=now,
        )

    # --- batches -------------------------------------------------------------------------------

    def batch_state(self, batch_id: str) -> BatchState:
        """Where a batch stands, derived from its plans and facts."""
        states = self._plan_states(batch_id)
        if any(state in OPEN_STATES for state in states):
            return BatchState.LEARNING
        live = PlanState.LIVE in states
        if self._has_new(batch_id):
            return BatchState.LEARNING if live else BatchState.WAITING
        if live:
            return BatchState.LIVE
        return _SETTLED[states[0]] if states else BatchState.EMPTY

    def _plan_states(self, batch_id: str) -> list[PlanState]:
        """States of the batch's plans that are not stale, the newest first."""
        rows = self._rows(
            "SELECT state FROM plans WHERE kind = ? AND state <> 'cancelled' AND id IN (SELECT plan"
            " FROM plan_batches WHERE batch = (SELECT seq FROM batches WHERE id = ?))"
            " ORDER BY id DESC",
            (PlanKind.LEARN.value, batch_id),
        )
        return [PlanState(row[0]) for row in rows]

    def _has_new(self, batch_id: str) -> bool:
        found = self._one(
            "SELECT 1 FROM facts WHERE batch = (SELECT seq FROM batches WHERE id = ?)"
            " AND state = 'pending' AND misses = 0 LIMIT 1",
            (batch_id,),
        )
        return bool(found)

    def missed(self, batch_id: str) -> tuple[str, ...]:
        """Facts of a batch that a plan went live with and that were not learnt so far."""
        rows = self._rows(
            "SELECT id FROM facts WHERE batch = (SELECT seq FROM batches WHERE id = ?)"
            " AND misses > 0 AND state IN ('pending', 'planned', 'unlearnt') ORDER BY seq",
            (batch_id,),
        )
        return tuple(row[0] for row in rows)

    def retry(self, batch_id: str, because: str, now: datetime) -> int:
        """Have everything of a batch that is not live planned anew; how many facts that are.

        Raises `Refused` where there is nothing to retry.
        """
        with self._write("retry"):
            for head in self.heads({PlanState.INCONCLUSIVE}, batch_id=batch_id):
                self._do("UPDATE facts SET tries = tries + 1 WHERE plan = ?", (head.id,))
                self._move(head.id, PlanState.INCONCLUSIVE, PlanState.CANCELLED, now)
            failed = self.heads({PlanState.FAILED}, batch_id=batch_id)
            for head in failed:
                self._move(head.id, PlanState.FAILED, PlanState.PLANNED, now)
            again = self._do(
                "UPDATE facts SET state = 'pending', misses = 0 WHERE batch ="
                " (SELECT seq FROM batches WHERE id = ?) AND validity = 'valid' AND (state IN"
                " ('rejected', 'unlearnt') OR (state = 'done' AND learnt IN"
                " (SELECT id FROM plans WHERE state = 'rolled-back')))",
                (batch_id,),
            )
            again += sum(head.facts for head in failed)
            if not again and not self._has_new(batch_id):
                state = self.batch_state(batch_id).value
                raise Refused(f"batch {batch_id[:12]} is {state}: there is nothing to retry")
            self._event("batch.retried", batch_id, {"facts": again, "because": because}, now)
        return again

    def retry_plan(self, plan_id: int, because: str, now: datetime) -> Plan:
        """A failed plan is planned again; raises `StateConflict` where it has not failed."""
        return self.move(plan_id, PlanState.FAILED, PlanState.PLANNED, now, because=because)

    # --- people --------------------------------------------------------------------------------

    def decide(self, plan_id: int, to: PlanState, because: str, now: datetime) -> Plan:
        """A person decides about an inconclusive plan: PASSED or REJECTED; recorded."""
        return self.move(plan_id, PlanState.INCONCLUSIVE, to, now, because=f"a person: {because}")

    def retract(self, fact_id: str, because: str, now: datetime) -> bool:
        """A fact must no longer be known; whether it was until now. Raises `NotFound`."""
        self.fact_state(fact_id)
        with self._write("retract"):
            done = self._do(
                "UPDATE facts SET validity = 'retracted',"
                " state = CASE state WHEN 'pending' THEN 'idle' ELSE state END"
                " WHERE id = ? AND validity <> 'retracted'",
                (fact_id,),
            )
            self._note_retracted((fact_id,), because, now)
        return bool(done)

    @property
    def paused(self) -> bool:
        """Whether a person has asked that nothing new is started."""
        return self.meta("paused") == "yes"

    def pause(self, paused: bool, because: str, now: datetime) -> None:
        """Start nothing new, or go on."""
        with self._write("pause"):
            self._set_meta("paused", "yes" if paused else "no")
            kind = "paused" if paused else "resumed"
            self._event(f"work.{kind}", "daemon", {"because": because}, now)

    def remember(self, key: str, value: str) -> None:
        """Keep a named value, such as the hash of the base."""
        if self.meta(key) != value:
            with self._write("remember"):
                self._set_meta(key, value)
