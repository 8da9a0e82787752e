"""Revisions and the target pointer: promotion and rollback."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from daemon.ledger.database import Database, SqlRow
from daemon.ledger.knowledge import Knowledge
from daemon.ledger.plans import Plans
from daemon.ledger.records import Served
from daemon.ledger.removals import Removals
from daemon.ledger.steps import Steps
from policies.errors import NotFound, RequestRefused, StateConflict, Superseded
from policies.notifications import Notification
from policies.records import PlanState, Revision
from policies.retention import StoredKind
from policies.text import counted

_COLUMNS: Final = "number, plan, parent, lineage, served_name, sha256, created_at"


class Revisions:
    """What can be served, and what is to be served."""

    def __init__(
        self,
        db: Database,
        plans: Plans,
        steps: Steps,
        knowledge: Knowledge,
        removals: Removals,
    ) -> None:
        self._db = db
        self._plans = plans
        self._steps = steps
        self._knowledge = knowledge
        self._removals = removals

    def ensure_base(self, name: str, now: datetime) -> Revision:
        """Revision 0, the base under the name by which the server knows it."""
        row = self._db.row(f"SELECT {_COLUMNS} FROM revisions WHERE number = 0")
        if row is None or row[4] != name:
            with self._db.write("ensure_base"):
                self._db.do(
                    "INSERT INTO revisions VALUES (0, NULL, NULL, '[]', ?, NULL, ?)"
                    " ON CONFLICT (number) DO UPDATE SET served_name = excluded.served_name",
                    (name, self._db.at(now)),
                )
                self._db.do(
                    "INSERT INTO target VALUES (1, 0, ?, 'the base') ON CONFLICT (one) DO NOTHING",
                    (self._db.at(now),),
                )
        return self.get(0)

    # --- reading -------------------------------------------------------------------------------

    def target(self) -> Revision:
        """The target: the revision that is to be served now."""
        row = self._db.row(
            f"SELECT {_COLUMNS} FROM revisions WHERE number = (SELECT number FROM target)"
        )
        if row is None:
            raise NotFound("the ledger has no base yet; start the daemon once")
        return _revision_of(row)

    def get(self, number: int) -> Revision:
        """One revision; raises `NotFound`."""
        row = self._db.row(f"SELECT {_COLUMNS} FROM revisions WHERE number = ?", (number,))
        if row is None:
            raise NotFound(f"no revision {number}; 'palorad history' lists them")
        return _revision_of(row)

    def all(self, limit: int | None = None) -> tuple[Revision, ...]:
        """All revisions, or the latest `limit`, the oldest first."""
        rows = self._db.rows(
            f"SELECT {_COLUMNS} FROM revisions ORDER BY number DESC LIMIT ?", (limit or -1,)
        )
        return tuple(_revision_of(row) for row in reversed(rows))

    def lineage_rank(self, lineage: Sequence[str]) -> int:
        """Ranks of the adapters together."""
        return sum(self._steps.adapter(sha256).rank for sha256 in lineage)

    # --- promotion -----------------------------------------------------------------------------

    def promote(self, plan_id: int, served: Served, now: datetime, *, relearn: int = 0) -> Revision:
        """PASSED or CANARY → LIVE: a new revision and the moved pointer, in one transaction.

        Facts that the verdict says were not learnt wait again, at most `relearn` times. A plan
        that is live already gives its revision. Raises `Superseded` when the lineage that the
        plan builds on is no longer target.
        """
        with self._db.write("promote"):
            head = self._plans.head(plan_id)
            if head.state is PlanState.LIVE:
                return _revision_of(self._revision_of_plan(plan_id))
            if head.state not in (PlanState.PASSED, PlanState.CANARY):
                raise StateConflict(f"plan {plan_id} is {head.state.value}, not passed")
            if head.adapter is None:
                raise StateConflict(f"plan {plan_id} has no adapter")
            parent, target = self.get(head.parent), self.target()
            if parent.lineage != target.lineage or not set(head.replaces) <= {*target.lineage}:
                raise Superseded(
                    f"plan {plan_id} builds on revision {parent.number}; "
                    f"{target.number} is target now"
                )
            if self._knowledge.knows_retracted(plan_id):
                raise Superseded(f"plan {plan_id} knows a fact that was retracted since")
            kept = tuple(sha for sha in target.lineage if sha not in head.replaces)
            number = int(self._db.one("SELECT max(number) FROM revisions")) + 1
            self._db.do(
                "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    plan_id,
                    target.number,
                    json.dumps([*kept, head.adapter]),
                    served.name,
                    served.sha256,
                    self._db.at(now),
                ),
            )
            self._db.do(
                "UPDATE plans SET state = ?, moved_at = ? WHERE id = ?",
                (PlanState.LIVE.value, self._db.at(now), plan_id),
            )
            given_up = self._settle_facts(plan_id, relearn)
            self._point(number, f"plan {plan_id} passed", now)
            published = {"revision": number, "name": served.name, "sha256": served.sha256}
            live, of_plan = Notification.LIVE, f"plan:{plan_id}"
            self._db.event(live.value, of_plan, published, now, told=live)
            if given_up:
                missed = Notification.NOT_LEARNT
                self._db.event(missed.value, of_plan, {"not_learnt": given_up}, now, told=missed)
        return self.get(number)

    def _revision_of_plan(self, plan_id: int) -> SqlRow:
        return self._db.rows(f"SELECT {_COLUMNS} FROM revisions WHERE plan = ?", (plan_id,))[0]

    def _settle_facts(self, plan_id: int, relearn: int) -> int:
        """How many of its facts are not learnt and not planned again."""
        verdict = self._steps.verdict(plan_id)
        missed = verdict.not_learnt if verdict is not None else ()
        self._db.do("UPDATE plan_facts SET learnt = 1 WHERE plan = ?", (plan_id,))
        # A rebuild has no rows of its own but for what it did not learn.
        self._db.do_all(
            "INSERT INTO plan_facts (plan, fact, learnt) SELECT ?, seq, 0 FROM facts WHERE id = ?"
            " ON CONFLICT (plan, fact) DO UPDATE SET learnt = 0",
            [(plan_id, fact_id) for fact_id in missed],
        )
        of_plan = "seq IN (SELECT fact FROM plan_facts WHERE plan = ?"
        self._db.do(
            f"UPDATE facts SET state = 'done', learnt = ? WHERE {of_plan} AND learnt = 1)",
            (plan_id, plan_id),
        )
        self._db.do(
            "UPDATE facts SET tries = tries + 1, misses = misses + 1, plan = ?, state = CASE"
            " WHEN validity <> 'valid' THEN 'idle' WHEN misses < ? THEN 'pending'"
            f" ELSE 'unlearnt' END WHERE {of_plan} AND learnt = 0)",
            (plan_id, relearn, plan_id),
        )
        return int(
            self._db.one(
                f"SELECT count(*) FROM facts WHERE {of_plan} AND learnt = 0)"
                " AND state = 'unlearnt'",
                (plan_id,),
            )
        )

    def _point(self, number: int, because: str, now: datetime, was: int | None = None) -> None:
        self._db.do(
            "UPDATE target SET number = ?, moved_at = ?, because = ?",
            (number, self._db.at(now), because),
        )
        said = {"because": because} if was is None else {"because": because, "was": was}
        told = None if was is None else Notification.ROLLED_BACK
        self._db.event("target", f"revision:{number}", said, now, told=told)

    # --- rollback ------------------------------------------------------------------------------

    def rollback(self, to: int, because: str, now: datetime) -> Revision:
        """Move the pointer to any earlier or later revision.

        Plans whose revision is left out become ROLLED_BACK, those that are served again LIVE.
        Raises `RequestRefused` where the revision knows a fact that was retracted since, or where
        its files are no longer kept.
        """
        chosen, current = self.get(to), self.target()
        if chosen.number == current.number:
            return current
        known = self._knowledge.forbidden_count(chosen.lineage)
        if known and chosen.lineage != current.lineage:
            raise RequestRefused(
                f"revision {to} knows {counted(known, 'retracted fact')}; it is not served again"
            )
        if self._removals.has(StoredKind.REVISION, chosen.served_name):
            raise RequestRefused(
                f"revision {to} is no longer kept (keep.revisions); choose a later one, or restore "
                "a backup"
            )
        with self._db.write("rollback"):
            chain = self._chain(to)
            marks = ",".join("?" * len(chain))
            for before, after, inside in (
                ("live", "rolled-back", "NOT IN"),
                ("rolled-back", "live", "IN"),
            ):
                self._db.do(
                    "UPDATE plans SET state = ?, moved_at = ? WHERE state = ? AND id IN (SELECT"
                    f" plan FROM revisions WHERE plan IS NOT NULL AND number {inside} ({marks}))",
                    (after, self._db.at(now), before, *chain),
                )
            self._db.do(
                "UPDATE facts SET state = 'unlearnt' WHERE state = 'pending' AND misses > 0"
                " AND plan IN (SELECT id FROM plans WHERE state = 'rolled-back')"
            )
            self._point(to, because, now, was=current.number)
        return self.get(to)

    def _chain(self, number: int) -> list[int]:
        rows = self._db.rows(
            "WITH RECURSIVE chain (number, parent) AS (SELECT number, parent FROM revisions"
            " WHERE number = ? UNION ALL SELECT r.number, r.parent FROM revisions r"
            " JOIN chain c ON r.number = c.parent) SELECT number FROM chain",
            (number,),
        )
        return [row[0] for row in rows]

    def forward_target(self) -> int:
        """The newest revision that was built on the target one; raises `RequestRefused`."""
        number = self._db.one(
            "SELECT max(number) FROM revisions WHERE parent = (SELECT number FROM target)"
        )
        if number is None:
            raise RequestRefused("no later revision was built on the one that is target")
        return int(number)


def _revision_of(row: SqlRow) -> Revision:
    number, plan, parent, lineage, name, sha256, created_at = row
    return Revision(
        number=number,
        plan_id=plan,
        parent=parent,
        lineage=tuple(json.loads(lineage)),
        served_name=name,
        sha256=sha256,
        created_at=datetime.fromisoformat(created_at),
    )
