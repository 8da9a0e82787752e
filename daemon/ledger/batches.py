"""Batches: what was dropped, and what became of it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from daemon.ledger.database import Database, SqlRow, chunks, marks, unstamp
from daemon.ledger.plans import Plans
from policies.errors import Ambiguous, NotFound, RequestRefused
from policies.records import OPEN_STATES, Batch, BatchState, PlanKind, PlanState

_BATCH: Final = "id, name, received_at, source, accepted, quarantined"
_SETTLED: Final = {
    PlanState.LIVE: BatchState.LIVE,
    PlanState.ROLLED_BACK: BatchState.ROLLED_BACK,
    PlanState.REJECTED: BatchState.REJECTED,
    PlanState.INCONCLUSIVE: BatchState.INCONCLUSIVE,
    PlanState.FAILED: BatchState.FAILED,
}


class Batches:
    """Batches by name, and where each stands."""

    def __init__(self, db: Database, plans: Plans) -> None:
        self._db = db
        self._plans = plans

    def is_complete(self, batch_id: str) -> bool:
        """Whether these bytes have been admitted whole."""
        return bool(self._db.one("SELECT complete FROM batches WHERE id = ?", (batch_id,)))

    def get(self, name: str) -> Batch:
        """By id, by the beginning of its id, or by file name (the latest of that name)."""
        row = self._db.row(f"SELECT {_BATCH} FROM batches WHERE id = ?", (name,))
        if row is None:
            row = self._db.row(
                f"SELECT {_BATCH} FROM batches WHERE name = ? ORDER BY seq DESC LIMIT 1",
                (name,),
            )
        if row is not None:
            return _batch_of(row)
        beginning = name.replace("%", "").replace("_", "")
        rows = self._db.rows(
            f"SELECT {_BATCH} FROM batches WHERE id >= ? AND id < ? LIMIT 2",
            (beginning, beginning + "\U0010ffff"),
        )
        if not beginning or not rows:
            raise NotFound(f"no batch {name}; 'palorad status' lists them")
        if len(rows) > 1:
            raise Ambiguous(f"more than one batch begins with {name}; write more of its id")
        return _batch_of(rows[0])

    def names(self, ids: Sequence[str]) -> dict[str, str]:
        """The file name of each of some batches, by id."""
        rows = self._db.rows(
            "SELECT b.id, b.name FROM json_each(?) e CROSS JOIN batches b ON b.id = e.value",
            (json.dumps(list(ids)),),
        )
        return dict(rows)

    def place_of(self, batch_id: str) -> int | None:
        """A batch's place in the order of arrival, from 1; None where there is none of that id."""
        found = self._db.one("SELECT seq FROM batches WHERE id = ?", (batch_id,))
        return None if found is None else int(found)

    def latest(self, limit: int = 100) -> tuple[Batch, ...]:
        """The latest batches, the newest first."""
        rows = self._db.rows(
            f"SELECT {_BATCH} FROM batches WHERE complete ORDER BY seq DESC LIMIT ?",
            (limit,),
        )
        return tuple(_batch_of(row) for row in rows)

    def of_facts(self, ids: Sequence[str]) -> dict[str, str]:
        """The batch by which each fact came."""
        return {
            fact_id: batch
            for chunk in chunks(ids)
            for fact_id, batch in self._db.rows(
                "SELECT f.id, b.id FROM facts f JOIN batches b ON b.seq = f.batch"
                f" WHERE f.id IN ({marks(chunk)})",
                chunk,
            )
        }

    def totals(self) -> dict[str, int]:
        """Counts over everything that has arrived."""
        row = self._db.counted(
            "totals",
            lambda: self._db.row(
                "SELECT count(*), coalesce(sum(accepted), 0), coalesce(sum(known), 0),"
                " coalesce(sum(quarantined), 0) FROM batches WHERE complete"
            ),
        )
        names = ("batches", "accepted", "known", "quarantined")
        return dict(zip(names, row or (0, 0, 0, 0), strict=True))

    # --- states --------------------------------------------------------------------------------

    def state(self, batch_id: str) -> BatchState:
        """Where a batch stands, derived from its plans and facts."""
        return self.states([batch_id])[batch_id]

    def states(self, ids: Sequence[str]) -> dict[str, BatchState]:
        """Where each of some batches stands, by two queries however many they are."""
        asked, learnt_by = json.dumps(list(ids)), defaultdict[str, list[PlanState]](list)
        for batch, state in self._db.rows(
            "SELECT e.value, p.state FROM json_each(?) e CROSS JOIN batches b ON b.id = e.value"
            " CROSS JOIN plan_batches o ON o.batch = b.seq CROSS JOIN plans p ON p.id = o.plan"
            " WHERE p.kind = ? AND p.state <> 'cancelled' ORDER BY p.id DESC",
            (asked, PlanKind.LEARN.value),
        ):
            learnt_by[batch].append(PlanState(state))
        fresh = self._db.rows(
            "SELECT e.value FROM json_each(?) e CROSS JOIN batches b ON b.id = e.value"
            " WHERE EXISTS (SELECT 1 FROM facts WHERE batch = b.seq AND state = 'pending'"
            " AND misses = 0)",
            (asked,),
        )
        new = {row[0] for row in fresh}
        return {batch: _state(learnt_by[batch], batch in new) for batch in ids}

    def _has_new(self, batch_id: str) -> bool:
        found = self._db.one(
            "SELECT 1 FROM facts WHERE batch = (SELECT seq FROM batches WHERE id = ?)"
            " AND state = 'pending' AND misses = 0 LIMIT 1",
            (batch_id,),
        )
        return bool(found)

    def missed(self, batch_id: str) -> tuple[str, ...]:
        """Facts of a batch that a plan went live with and that were not learnt so far."""
        rows = self._db.rows(
            "SELECT id FROM facts WHERE batch = (SELECT seq FROM batches WHERE id = ?)"
            " AND misses > 0 AND state IN ('pending', 'planned', 'unlearnt') ORDER BY seq",
            (batch_id,),
        )
        return tuple(row[0] for row in rows)

    def retry(self, batch_id: str, because: str, now: datetime) -> int:
        """Plan everything of a batch that is not live once more; return how many facts that is.

        Raises `RequestRefused` where there is nothing to retry.
        """
        with self._db.write("retry"):
            for head in self._plans.heads({PlanState.INCONCLUSIVE}, batch_id=batch_id):
                self._db.do("UPDATE facts SET tries = tries + 1 WHERE plan = ?", (head.id,))
                self._plans.set_state(head.id, PlanState.INCONCLUSIVE, PlanState.CANCELLED, now)
            failed = self._plans.heads({PlanState.FAILED}, batch_id=batch_id)
            for head in failed:
                self._plans.set_state(head.id, PlanState.FAILED, PlanState.PLANNED, now)
            again = self._db.do(
                "UPDATE facts SET state = 'pending', misses = 0 WHERE batch ="
                " (SELECT seq FROM batches WHERE id = ?) AND validity = 'valid' AND (state IN"
                " ('rejected', 'unlearnt') OR (state = 'done' AND learnt IN"
                " (SELECT id FROM plans WHERE state = 'rolled-back')))",
                (batch_id,),
            )
            again += sum(head.facts for head in failed)
            if not again and not self._has_new(batch_id):
                state = self.state(batch_id).value
                raise RequestRefused(f"batch {batch_id[:12]} is {state}: there is nothing to retry")
            self._db.event("batch.retried", batch_id, {"facts": again, "because": because}, now)
        return again


def _state(plans: Sequence[PlanState], fresh: bool) -> BatchState:
    """Where a batch stands: by the states of its plans that were not cancelled, the newest first,
    and by whether some of its facts have been in no plan yet."""
    if any(state in OPEN_STATES for state in plans):
        return BatchState.LEARNING
    live = PlanState.LIVE in plans
    if fresh:
        return BatchState.LEARNING if live else BatchState.WAITING
    if live:
        return BatchState.LIVE
    return _SETTLED[plans[0]] if plans else BatchState.EMPTY


def _batch_of(row: SqlRow) -> Batch:
    identity, name, received_at, source, accepted, quarantined = row
    return Batch(
        id=identity,
        name=name,
        received_at=unstamp(received_at),
        source=source,
        accepted=accepted,
        quarantined=quarantined,
    )
