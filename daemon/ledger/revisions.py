"""Revisions and the target pointer: promotion, rollback, and what a lineage knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from daemon.ledger.database import Row, stamp
from daemon.ledger.facts import VALID
from daemon.ledger.quarantine import LedgerQuarantine
from daemon.ledger.records import Served
from daemon.ledger.steps import LedgerSteps
from policies.errors import NotFound, Refused, StateConflict, Superseded
from policies.lineage import stride
from policies.records import PlanState, Revision

_COLUMNS: Final = "number, plan, parent, lineage, served_name, served_path, sha256, created_at"
_LEARNT: Final = "p.role IN ('learn', 'relearn')"
_KNOWN: Final = (
    f"FROM facts f WHERE f.seq IN (SELECT p.fact FROM plan_facts p WHERE {_LEARNT}"
    " AND coalesce(p.learnt, 1) = 1 AND p.plan IN (SELECT a.plan FROM adapters a"
    f" WHERE a.sha256 IN (SELECT value FROM json_each(:lineage)))) AND {VALID}"
)
_IN_LINEAGE: Final = (
    "SELECT p.fact FROM plan_facts p JOIN adapters a ON a.plan = p.plan"
    " WHERE p.role IN ('learn', 'relearn', 'trace')"
    " AND coalesce(p.learnt, 1) = 1 AND a.sha256 IN (SELECT value FROM json_each(:lineage))"
)
_SUPERSEDED: Final = (
    "SELECT f.id, n.id FROM facts f JOIN facts n ON n.id = f.replaced_by"
    " WHERE (f.validity = 'superseded' OR (f.validity = 'valid' AND f.valid_until <= :now))"
    f" AND f.seq IN ({_IN_LINEAGE}) AND (n.seq IN ({_IN_LINEAGE}) OR n.seq IN"
    " (SELECT fact FROM plan_facts WHERE plan = :plan AND role = 'learn'))"
    " ORDER BY f.seq DESC LIMIT :limit"
)
_FORBIDDEN: Final = (
    "SELECT count(*) FROM facts f WHERE f.validity = 'retracted' AND EXISTS (SELECT 1"
    " FROM plan_facts p JOIN adapters a ON a.plan = p.plan WHERE p.fact = f.seq"
    " AND a.sha256 IN (SELECT value FROM json_each(:lineage)))"
)


class LedgerRevisions(LedgerQuarantine, LedgerSteps):
    """What can be served, and what shall be."""

    def ensure_base(self, name: str, now: datetime) -> Revision:
        """Revision 0, the base under the name by which the server knows it."""
        row = self._row(f"SELECT {_COLUMNS} FROM revisions WHERE number = 0")
        if row is None or row[4] != name:
            with self._write("ensure_base"):
                self._do(
                    "INSERT INTO revisions VALUES (0, NULL, NULL, '[]', ?, NULL, NULL, ?)"
                    " ON CONFLICT (number) DO UPDATE SET served_name = excluded.served_name",
                    (name, self._at(now)),
                )
                self._do(
                    "INSERT INTO target VALUES (1, 0, ?, 'the base') ON CONFLICT (one) DO NOTHING",
                    (self._at(now),),
                )
        return self.revision(0)

    # --- reading -------------------------------------------------------------------------------

    def target(self) -> Revision:
        """What shall be served now."""
        row = self._row(
            f"SELECT {_COLUMNS} FROM revisions WHERE number = (SELECT number FROM target)"
        )
        if row is None:
            raise NotFound("the ledger has no base yet; start the daemon once")
        return _revision_of(row)

    def revision(self, number: int) -> Revision:
        """One revision; raises `NotFound`."""
        row = self._row(f"SELECT {_COLUMNS} FROM revisions WHERE number = ?", (number,))
        if row is None:
            raise NotFound(f"no revision {number}; 'palorad history' lists them")
        return _revision_of(row)

    def revisions(self, limit: int | None = None) -> tuple[Revision, ...]:
        """All revisions, or the latest `limit`, the oldest first."""
        rows = self._rows(
            f"SELECT {_COLUMNS} FROM revisions ORDER BY number DESC LIMIT ?", (limit or -1,)
        )
        return tuple(_revision_of(row) for row in reversed(rows))

    def lineage_rank(self, lineage: Sequence[str]) -> int:
        """Ranks of the adapters together."""
        return sum(self.adapter(sha256).rank for sha256 in lineage)

    def known_count(self, lineage: Sequence[str], now: datetime) -> int:
        """How many valid facts the adapters of a lineage learnt."""
        found = self._one(f"SELECT count(*) {_KNOWN}", _of(lineage, now))
        return int(found)

    def known_ids(self, lineage: Sequence[str], now: datetime, limit: int) -> tuple[str, ...]:
        """Valid facts that a lineage learnt: all, or an even sample of at most `limit`."""
        every = stride(self.known_count(lineage, now), limit)
        if not every:
            return ()
        rows = self._rows(
            f"SELECT id FROM (SELECT f.id AS id, row_number() OVER (ORDER BY f.seq) AS n {_KNOWN})"
            " WHERE (n - 1) % :every = 0 ORDER BY n",
            {**_of(lineage, now), "every": every},
        )
        return tuple(row[0] for row in rows)

    def superseded_ids(
        self, lineage: Sequence[str], plan_id: int, now: datetime, limit: int
    ) -> tuple[tuple[str, str], ...]:
        """Facts that a lineage learnt and that have since given way to another, which the lineage
        or this plan learns: the latest pairs (old, new).
        """
        parameters = {**_of(lineage, now), "plan": plan_id, "limit": limit}
        return tuple((old, new) for old, new in self._rows(_SUPERSEDED, parameters))

    def taught_by(self, fact_id: str, lineage: Sequence[str]) -> int | None:
        """The plan whose adapter, one of the lineage, learnt a fact; the latest of several."""
        found = self._one(
            "SELECT p.plan FROM plan_facts p JOIN adapters a ON a.plan = p.plan"
            f" WHERE {_LEARNT} AND coalesce(p.learnt, 1) = 1"
            " AND p.fact = (SELECT seq FROM facts WHERE id = ?)"
            " AND a.sha256 IN (SELECT value FROM json_each(?)) ORDER BY p.plan DESC LIMIT 1",
            (fact_id, json.dumps(list(lineage))),
        )
        return None if found is None else int(found)

    def forbidden_count(self, lineage: Sequence[str]) -> int:
        """How many retracted facts some adapter of a lineage learnt or replayed."""
        return int(self._one(_FORBIDDEN, {"lineage": json.dumps(list(lineage))}))

    # --- promotion -----------------------------------------------------------------------------

    def promote(self, plan_id: int, served: Served, now: datetime, *, relearn: int = 0) -> Revision:
        """PASSED → LIVE: a new revision and the moved pointer, in one transaction.

        Facts that the verdict says were not learnt wait again, at most `relearn` times. A plan
        that is live already gives its revision. Raises `Superseded` when the lineage that the
        plan builds on is no longer target.
        """
        with self._write("promote"):
            head = self.head(plan_id)
            if head.state is PlanState.LIVE:
                return _revision_of(self._revision_of_plan(plan_id))
            if head.state is not PlanState.PASSED:
                raise StateConflict(f"plan {plan_id} is {head.state.value}, not passed")
            if head.adapter is None:
                raise StateConflict(f"plan {plan_id} has no adapter")
            parent, target = self.revision(head.parent), self.target()
            if parent.lineage != target.lineage or not set(head.replaces) <= {*target.lineage}:
                raise Superseded(
                    f"plan {plan_id} builds on revision {parent.number}; "
                    f"{target.number} is target now"
                )
            if self._knows_retracted(plan_id):
                raise Superseded(f"plan {plan_id} knows a fact that was retracted since")
            kept = tuple(sha for sha in target.lineage if sha not in head.replaces)
            number = int(self._one("SELECT max(number) FROM revisions")) + 1
            self._do(
                "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    plan_id,
                    target.number,
                    json.dumps([*kept, head.adapter]),
                    served.name,
                    served.path,
                    served.sha256,
                    self._at(now),
                ),
            )
            self._do(
                "UPDATE plans SET state = ?, moved_at = ? WHERE id = ?",
                (PlanState.LIVE.value, self._at(now), plan_id),
            )
            self._settle_facts(plan_id, relearn)
            self._point(number, f"plan {plan_id} passed", now)
            self._event("plan.live", f"plan:{plan_id}", {"revision": number}, now)
        return self.revision(number)

    def _knows_retracted(self, plan_id: int) -> bool:
        found = self._one(
            "SELECT 1 FROM facts f JOIN plan_facts p ON p.fact = f.seq"
            " WHERE p.plan = ? AND f.validity = 'retracted' LIMIT 1",
            (plan_id,),
        )
        return bool(found)

    def _revision_of_plan(self, plan_id: int) -> Row:
        return self._rows(f"SELECT {_COLUMNS} FROM revisions WHERE plan = ?", (plan_id,))[0]

    def _settle_facts(self, plan_id: int, relearn: int) -> None:
        verdict = self.verdict(plan_id)
        missed = verdict.not_learnt if verdict is not None else ()
        self._do("UPDATE plan_facts SET learnt = 1 WHERE plan = ? AND role = 'learn'", (plan_id,))
        self._do_all(
            "UPDATE plan_facts SET learnt = 0 WHERE plan = ? AND role = 'learn'"
            " AND fact = (SELECT seq FROM facts WHERE id = ?)",
            [(plan_id, fact_id) for fact_id in missed],
        )
        of_plan = "seq IN (SELECT fact FROM plan_facts WHERE plan = ? AND role = 'learn'"
        self._do(
            f"UPDATE facts SET state = 'done', learnt = ? WHERE {of_plan} AND learnt = 1)",
            (plan_id, plan_id),
        )
        self._do(
            "UPDATE facts SET tries = tries + 1, misses = misses + 1, plan = ?, state = CASE"
            " WHEN validity <> 'valid' THEN 'idle' WHEN misses < ? THEN 'pending'"
            f" ELSE 'unlearnt' END WHERE {of_plan} AND learnt = 0)",
            (plan_id, relearn, plan_id),
        )

    def _point(self, number: int, because: str, now: datetime) -> None:
        self._do(
            "UPDATE target SET number = ?, moved_at = ?, because = ?",
            (number, self._at(now), because),
        )
        self._event("target", f"revision:{number}", {"because": because}, now)

    # --- rollback ------------------------------------------------------------------------------

    def rollback(self, to: int, because: str, now: datetime) -> Revision:
        """Move the pointer to any earlier or later revision.

        Plans whose revision is left out become ROLLED_BACK, those that are served again LIVE.
        Raises `Refused` where the revision knows a fact that was retracted since.
        """
        chosen, current = self.revision(to), self.target()
        if chosen.number == current.number:
            return current
        known = self.forbidden_count(chosen.lineage)
        if known and chosen.lineage != current.lineage:
            raise Refused(
                f"revision {to} knows {known} facts that were retracted; it is not served again"
            )
        with self._write("rollback"):
            chain = self._chain(to)
            marks = ",".join("?" * len(chain))
            for before, after, inside in (
                ("live", "rolled-back", "NOT IN"),
                ("rolled-back", "live", "IN"),
            ):
                self._do(
                    "UPDATE plans SET state = ?, moved_at = ? WHERE state = ? AND id IN (SELECT"
                    f" plan FROM revisions WHERE plan IS NOT NULL AND number {inside} ({marks}))",
                    (after, self._at(now), before, *chain),
                )
            self._do(
                "UPDATE facts SET state = 'unlearnt' WHERE state = 'pending' AND misses > 0"
                " AND plan IN (SELECT id FROM plans WHERE state = 'rolled-back')"
            )
            self._point(to, because, now)
        return self.revision(to)

    def _chain(self, number: int) -> list[int]:
        rows = self._rows(
            "WITH RECURSIVE chain (number, parent) AS (SELECT number, parent FROM revisions"
            " WHERE number = ? UNION ALL SELECT r.number, r.parent FROM revisions r"
            " JOIN chain c ON r.number = c.parent) SELECT number FROM chain",
            (number,),
        )
        return [row[0] for row in rows]

    def forward_target(self) -> int:
        """The newest revision that was built on the target one; raises `Refused`."""
        number = self._one(
            "SELECT max(number) FROM revisions WHERE parent = (SELECT number FROM target)"
        )
        if number is None:
            raise Refused("no later revision was built on the one that is target")
        return int(number)


def _of(lineage: Sequence[str], now: datetime) -> dict[str, str]:
    return {"lineage": json.dumps(list(lineage)), "now": stamp(now)}


def _revision_of(row: Row) -> Revision:
    number, plan, parent, lineage, name, path, sha256, created_at = row
    return Revision(
        number=number,
        plan_id=plan,
        parent=parent,
        lineage=tuple(json.loads(lineage)),
        served_name=name,
        served_path=path,
        sha256=sha256,
        created_at=datetime.fromisoformat(created_at),
    )
