"""Plans: what each learns and replays, and where it stands."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from daemon.ledger.database import Database, SqlRow, marks, stamp
from daemon.ledger.records import PlanHead, Served
from policies.errors import NotFound, StateConflict
from policies.notifications import Notification
from policies.records import OPEN_STATES, TRANSITIONS, Plan, PlanKind, PlanState

_HEAD: Final = (
    "id, kind, state, parent, replaces, rank, seed, facts, replays, attempts, interruptions,"
    " not_before, adapter, served, because, error, error_kind, created_at, moved_at"
)
_TOLD: Final = {
    PlanState.REJECTED: Notification.REJECTED,
    PlanState.INCONCLUSIVE: Notification.INCONCLUSIVE,
    PlanState.FAILED: Notification.FAILED,
}
_FIELDS: Final = frozenset({"attempts", "not_before", "error", "error_kind", "because"})


class Plans:
    """The units of work."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(
        self,
        kind: PlanKind,
        *,
        parent: int,
        replaces: Sequence[str] = (),
        fact_ids: Sequence[str] = (),
        rebuilt: int = 0,
        replays: int = 0,
        batches: Sequence[int] = (),
        rank: int,
        seed: int,
        because: str,
        now: datetime,
    ) -> PlanHead:
        """A new plan; the facts of a `learn` plan wait for it alone from here on.

        A rebuild learns `rebuilt` facts, and a `learn` plan replays up to `replays` beside its
        own: they follow from the adapters it replaces and are not stored. `batches` are row
        numbers of those that a rebuild touches. Raises `StateConflict` if a fact of the plan is
        no longer waiting.
        """
        with self._db.write("create_plan"):
            at = self._db.at(now)
            self._db.do(
                "INSERT INTO plans (kind, state, parent, replaces, rank, seed, facts, replays,"
                " because, created_at, moved_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(kind.value, PlanState.PLANNED.value, parent, json.dumps(list(replaces))),
                    *(rank, seed, len(fact_ids) + rebuilt, replays, because),
                    *(at, at),
                ),
            )
            plan_id = int(self._db.one("SELECT max(id) FROM plans"))
            self._take(plan_id, fact_ids)
            self._db.do_all(
                "INSERT INTO plan_batches (plan, batch) VALUES (?, ?)",
                [(plan_id, batch) for batch in batches],
            )
            counts = {"kind": kind, "facts": len(fact_ids) + rebuilt, "replays": replays}
            self._db.event(
                "plan.made", f"plan:{plan_id}", {**counts, "parent": parent, "seed": seed}, now
            )
        return self.head(plan_id)

    def _take(self, plan_id: int, fact_ids: Sequence[str]) -> None:
        """The facts wait for this plan alone."""
        stored = self._db.do_all(
            "INSERT INTO plan_facts (plan, fact) SELECT ?, seq FROM facts WHERE id = ?",
            [(plan_id, fact_id) for fact_id in fact_ids],
        )
        self._db.expect(stored, len(fact_ids), "facts of the plan")
        self._db.do(
            "INSERT INTO plan_batches SELECT DISTINCT ?, f.batch FROM plan_facts p"
            " JOIN facts f ON f.seq = p.fact WHERE p.plan = ?",
            (plan_id, plan_id),
        )
        taken = self._db.do(
            "UPDATE facts SET state = 'planned', plan = ? WHERE state = 'pending'"
            " AND seq IN (SELECT fact FROM plan_facts WHERE plan = ?)",
            (plan_id, plan_id),
        )
        if taken != len(fact_ids):
            raise StateConflict("a fact of the plan is no longer waiting")

    # --- reading -------------------------------------------------------------------------------

    def get(self, plan_id: int) -> Plan:
        """A plan with the facts that it takes from those that wait; raises `NotFound`."""
        head = self.head(plan_id)
        return Plan(
            **head.model_dump(include={*Plan.model_fields}),
            fact_ids=self.fact_ids(plan_id),
        )

    def fact_ids(self, plan_id: int) -> tuple[str, ...]:
        """The facts that a `learn` plan takes from those that wait, in the order of their coming.

        What a rebuild learns is `Planning.to_learn`.
        """
        rows = self._db.rows(
            "SELECT f.id FROM plan_facts p JOIN facts f ON f.seq = p.fact"
            " WHERE p.plan = ? ORDER BY p.fact",
            (plan_id,),
        )
        return tuple(row[0] for row in rows)

    def head(self, plan_id: int) -> PlanHead:
        """A plan without its facts; raises `NotFound`."""
        row = self._db.row(f"SELECT {_HEAD} FROM plans WHERE id = ?", (plan_id,))
        if row is None:
            raise NotFound(f"no plan {plan_id}; 'palorad history' lists them")
        return _head_of(row)

    def heads(
        self,
        states: Collection[PlanState] | None = None,
        *,
        batch_id: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> tuple[PlanHead, ...]:
        """Plans without their facts, the newest first; those below the number `before`."""
        where, parameters = ["1"], []
        if before is not None:
            where.append(f"id < {int(before)}")
        if states is not None:
            where.append(f"state IN ({','.join('?' * len(states))})")
            parameters += [state.value for state in states]
        if batch_id is not None:
            where.append(
                "id IN (SELECT plan FROM plan_batches WHERE batch ="
                " (SELECT seq FROM batches WHERE id = ?))"
            )
            parameters.append(batch_id)
        rows = self._db.rows(
            f"SELECT {_HEAD} FROM plans WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?",
            (*parameters, limit),
        )
        return tuple(map(_head_of, rows))

    def all(
        self, states: Collection[PlanState] | None = None, limit: int = 100
    ) -> tuple[Plan, ...]:
        """Plans with all their facts, the newest first; `heads` is lighter."""
        return tuple(self.get(head.id) for head in self.heads(states, limit=limit))

    def went_live(self, kinds: Collection[PlanKind]) -> Iterator[int]:
        """Numbers of the plans of these kinds that went live, the newest first."""
        live, told = (PlanState.LIVE, PlanState.ROLLED_BACK), sorted(kinds)
        for (plan_id,) in self._db.rows(
            f"SELECT id FROM plans WHERE kind IN ({marks(told)}) AND state IN ({marks(live)})"
            " ORDER BY id DESC",
            (*told, *live),
        ):
            yield plan_id

    def open_plan(self) -> PlanHead | None:
        """The plan under way: of those that are open the one that has come furthest.

        There are two where a failed plan is retried while another is under way.
        """
        states = ",".join(f"'{state.value}'" for state in OPEN_STATES)
        row = self._db.row(
            f"SELECT {_HEAD} FROM plans WHERE state IN ({states}) ORDER BY"
            " EXISTS (SELECT 1 FROM leases WHERE plan = id) DESC,"
            " CASE state WHEN 'planned' THEN 2 WHEN 'trained' THEN 1 ELSE 0 END, id LIMIT 1"
        )
        return None if row is None else _head_of(row)

    def batches(self, plan_id: int, limit: int | None = None) -> tuple[str, ...]:
        """The batches whose facts a plan learns, in the order of their coming, or the first
        `limit`; of a rebuild these may be all that ever came."""
        rows = self._db.rows(
            "SELECT b.id FROM plan_batches p JOIN batches b ON b.seq = p.batch"
            " WHERE p.plan = ? ORDER BY p.batch LIMIT ?",  # by b.seq it would walk over all batches
            (plan_id, -1 if limit is None else limit),
        )
        return tuple(row[0] for row in rows)

    # --- moving --------------------------------------------------------------------------------

    def move(
        self,
        plan_id: int,
        expect: PlanState,
        to: PlanState,
        now: datetime,
        **fields: Any,  # noqa: ANN401 - columns of several types
    ) -> Plan:
        """Compare-and-swap of a plan's state; raises `StateConflict`.

        `fields` are attempts, not_before, error, error_kind or because. Promotion, which moves
        to LIVE, is `promote`.
        """
        with self._db.write(f"move:{to.value}"):
            self.set_state(plan_id, expect, to, now, **fields)
        return self.get(plan_id)

    def decide(self, plan_id: int, to: PlanState, because: str, now: datetime) -> Plan:
        """A person decides about an inconclusive plan: PASSED or REJECTED; recorded."""
        return self.move(plan_id, PlanState.INCONCLUSIVE, to, now, because=f"a person: {because}")

    def retry(self, plan_id: int, because: str, now: datetime) -> Plan:
        """A failed plan is planned again; raises `StateConflict` where it has not failed."""
        return self.move(plan_id, PlanState.FAILED, PlanState.PLANNED, now, because=because)

    def set_state(
        self,
        plan_id: int,
        expect: PlanState,
        to: PlanState,
        now: datetime,
        **fields: Any,  # noqa: ANN401 - columns of several types
    ) -> None:
        """Within a change: `move`."""
        if to not in TRANSITIONS[expect]:
            raise StateConflict(f"plan {plan_id}: no way from {expect.value} to {to.value}")
        if not fields.keys() <= _FIELDS:
            raise ValueError(f"no such fields of a plan: {fields.keys() - _FIELDS}")
        values = {"attempts": 0, "interruptions": 0, "not_before": None, **fields}
        if isinstance(values["not_before"], datetime):
            values["not_before"] = stamp(values["not_before"])
        columns = ", ".join(f"{name} = :{name}" for name in values)
        moved = self._db.do(
            f"UPDATE plans SET state = :to, moved_at = :at, {columns}"
            " WHERE id = :id AND state = :expect",
            {
                **values,
                "to": to.value,
                "at": self._db.at(now),
                "id": plan_id,
                "expect": expect.value,
            },
        )
        if not moved:
            actual = self.head(plan_id).state
            raise StateConflict(f"plan {plan_id} is {actual.value}, not {expect.value}")
        waits_again = self._release_facts(plan_id, to)
        said = {name: value for name, value in fields.items() if value is not None}
        said = {"from": expect.value, **said}
        told = None if waits_again else _TOLD.get(to)
        self._db.event(f"plan.{to.value}", f"plan:{plan_id}", said, now, told=told)

    def _release_facts(self, plan_id: int, to: PlanState) -> bool:
        """What becomes of the facts that waited for this plan; whether they are planned again."""
        if to is PlanState.CANCELLED:
            self._to_pending(plan_id)
            return True
        if to is PlanState.REJECTED:
            batches = self._db.rows("SELECT batch FROM plan_batches WHERE plan = ?", (plan_id,))
            self._db.do(
                "UPDATE facts SET tries = tries + 1 WHERE plan = ? AND state = 'planned'",
                (plan_id,),
            )
            if len(batches) > 1:
                self._db.do(
                    "UPDATE batches SET alone = 1 WHERE seq IN"
                    " (SELECT batch FROM plan_batches WHERE plan = ?)",
                    (plan_id,),
                )
                self._to_pending(plan_id)
                return True
            self._db.do(
                "UPDATE facts SET state = 'rejected' WHERE plan = ? AND state = 'planned'",
                (plan_id,),
            )
        return False

    def _to_pending(self, plan_id: int) -> None:
        self._db.do(
            "UPDATE facts SET state = CASE validity WHEN 'valid' THEN 'pending' ELSE 'idle' END"
            " WHERE plan = ? AND state = 'planned'",
            (plan_id,),
        )


def _head_of(row: SqlRow) -> PlanHead:
    names = [name.strip() for name in _HEAD.split(",")]
    found: dict[str, Any] = dict(zip(names, row, strict=True))
    served = found.pop("served")
    return PlanHead(
        **found | {"replaces": tuple(json.loads(found["replaces"]))},
        served=None if served is None else Served.model_validate_json(served),
    )
