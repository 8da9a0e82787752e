"""What was admitted and where each fact stands."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from daemon.ledger.database import Database, SqlRow, chunks, marks, stamp, unstamp
from daemon.ledger.records import FactCounts
from policies.errors import NotFound
from policies.planning import Waiting
from policies.records import Fact

VALID: Final = (
    "f.validity = 'valid' AND (f.valid_from IS NULL OR f.valid_from <= :now)"
    " AND (f.valid_until IS NULL OR f.valid_until > :now)"
)

# The newest plan when a fact ceased to be valid: no later plan has learnt or replayed it.
LOST_NOW: Final = "coalesce(lost_after, (SELECT coalesce(max(id), 0) FROM plans))"

_SEPARATOR: Final = "\x1f"


class Facts:
    """Facts, read one by one, by batch, or those that wait."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def find(
        self,
        *,
        batch_id: str | None = None,
        ids: Sequence[str] | None = None,
        state: str | None = None,
        valid_at: datetime | None = None,
        limit: int | None = None,
    ) -> tuple[Fact, ...]:
        """Facts in the order in which they came, all conditions together.

        `ids` keeps the order in which they were asked for.
        """
        if ids is not None:
            found = {f.id: f for chunk in chunks(ids) for f in self._by_id(chunk)}
            return tuple(found[i] for i in ids if i in found)
        where, parameters = ["op <> 'retract'"], {}
        if batch_id is not None:
            where.append("batch = (SELECT seq FROM batches WHERE id = :batch)")
            parameters["batch"] = batch_id
        if state is not None:
            where.append("state = :state")
            parameters["state"] = state
        if valid_at is not None:
            where.append(VALID)
            parameters["now"] = stamp(valid_at)
        sql = f"SELECT body FROM facts f WHERE {' AND '.join(where)} ORDER BY seq"
        bound = "" if limit is None else f" LIMIT {int(limit)}"
        return tuple(Fact.model_validate_json(r[0]) for r in self._db.rows(sql + bound, parameters))

    def _by_id(self, ids: Sequence[str]) -> Iterator[Fact]:
        for (body,) in self._db.rows(
            f"SELECT body FROM facts WHERE id IN ({marks(ids)})",
            ids,
        ):
            yield Fact.model_validate_json(body)

    def state(self, fact_id: str) -> dict[str, Any]:
        """Where one fact stands: batch, validity, state, tries, the plan that taught it."""
        found = self.states([fact_id])
        if fact_id not in found:
            raise NotFound(f"no fact {fact_id}")
        return found[fact_id]

    def states(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Where each of some facts stands, by id; one query however many they are."""
        rows = self._db.rows(
            "SELECT f.id, b.id, b.name, f.validity, f.replaced_by, f.state, f.tries, f.learnt,"
            " f.plan FROM json_each(?) e CROSS JOIN facts f ON f.id = e.value"
            " CROSS JOIN batches b ON b.seq = f.batch",
            (json.dumps(list(ids)),),
        )
        names = ("batch", "batch_name", "validity", "replaced_by", "state", "tries", "learnt")
        return {fact: dict(zip((*names, "plan"), row, strict=True)) for fact, *row in rows}

    def counts(self, batch_id: str | None = None) -> FactCounts:
        """How many facts stand where, of one batch or (slower) of all."""
        where = "" if batch_id is None else "WHERE batch = (SELECT seq FROM batches WHERE id = ?)"
        counts = {
            str(state): int(number)
            for state, number in self._db.rows(
                f"SELECT state, count(*) FROM facts {where} GROUP BY state",
                () if batch_id is None else (batch_id,),
            )
        }
        return FactCounts(**counts)

    def counts_by_batch(self, ids: Sequence[str]) -> dict[str, FactCounts]:
        """How many facts of each of some batches stand where, by one query."""
        counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for batch, state, number in self._db.rows(
            "SELECT e.value, f.state, count(*) FROM json_each(?) e"
            " CROSS JOIN batches b ON b.id = e.value CROSS JOIN facts f ON f.batch = b.seq"
            " GROUP BY b.seq, f.state",
            (json.dumps(list(ids)),),
        ):
            counts[batch][state] = number
        return {batch: FactCounts(**counts[batch]) for batch in ids}

    def not_before(self, batch_id: str, now: datetime) -> datetime | None:
        """When the first fact of a batch becomes valid, if it waits for nothing but that."""
        first = self._db.one(
            "SELECT min(coalesce(valid_from, '')) FROM facts WHERE state = 'pending'"
            " AND batch = (SELECT seq FROM batches WHERE id = ?)",
            (batch_id,),
        )
        return unstamp(first) if first and first > stamp(now) else None

    def unlearnt_count(self) -> int:
        """How many facts were given up because no candidate learnt them."""
        # Left to itself SQLite counts by a larger index, which holds every fact.
        counted = "SELECT count(*) FROM facts INDEXED BY facts_unlearnt WHERE state = 'unlearnt'"
        return int(self._db.one(counted))

    def waiting(self, now: datetime, limit: int) -> tuple[Waiting, ...]:
        """Facts to be learnt, urgent ones first, then as they came."""
        first = self._db.one(
            "SELECT min(first_fact) FROM batches WHERE complete = 0 AND aside = ''"
        )
        rows: list[SqlRow] = []
        for urgent in (1, 0):
            if len(rows) < limit:
                rows += self._db.rows(
                    "SELECT f.id, b.id, b.alone, f.tries, f.urgent, f.recorded_at"
                    " FROM facts f JOIN batches b"
                    f" ON b.seq = f.batch WHERE f.state = 'pending' AND f.urgent = :urgent"
                    f" AND f.seq < :first AND b.aside = '' AND {VALID} ORDER BY f.seq LIMIT :limit",
                    {
                        "urgent": urgent,
                        "now": stamp(now),
                        "first": first if first is not None else 1 << 62,
                        "limit": limit - len(rows),
                    },
                )
        return tuple(
            Waiting(id=i, batch=b, alone=bool(a), tries=t, urgent=bool(u), since=unstamp(at))
            for i, b, a, t, u, at in rows
        )

    def about(self, subject: str, relation: str) -> tuple[str, ...]:
        """Every fact of a key that is not retracted, superseded ones too."""
        asked = Fact(id="", prompt="", answer="", subject=subject, relation=relation)
        rows = self._db.rows(
            "SELECT id FROM facts WHERE key = ? AND op <> 'retract' AND validity <> 'retracted'"
            " ORDER BY seq",
            (key_of(asked),),
        )
        return tuple(row[0] for row in rows)


def key_of(fact: Fact) -> str:
    """What the fact is about, as one text."""
    key = _SEPARATOR.join(fact.key)
    if "  " in key or f" {_SEPARATOR}" in key or not key.replace(_SEPARATOR, "").isprintable():
        return _SEPARATOR.join(" ".join(part.split()) for part in fact.key)
    return key.strip(" ")
