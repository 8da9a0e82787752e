"""What a lineage of adapters knows, and what of it was retracted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from daemon.ledger.database import Database, stamp
from daemon.ledger.facts import VALID
from policies.lineage import stride

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


class Knowledge:
    """Facts by the lineage that learnt them."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def known_count(self, lineage: Sequence[str], now: datetime) -> int:
        """How many valid facts the adapters of a lineage learnt."""
        found = self._db.one(f"SELECT count(*) {_KNOWN}", _of(lineage, now))
        return int(found)

    def known_ids(self, lineage: Sequence[str], now: datetime, limit: int) -> tuple[str, ...]:
        """Valid facts that a lineage learnt: all, or an even sample of at most `limit`."""
        every = stride(self.known_count(lineage, now), limit)
        if not every:
            return ()
        rows = self._db.rows(
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
        return tuple((old, new) for old, new in self._db.rows(_SUPERSEDED, parameters))

    def taught_by(self, fact_id: str, lineage: Sequence[str]) -> int | None:
        """The plan whose adapter, one of the lineage, learnt a fact; the latest of several."""
        found = self._db.one(
            "SELECT p.plan FROM plan_facts p JOIN adapters a ON a.plan = p.plan"
            f" WHERE {_LEARNT} AND coalesce(p.learnt, 1) = 1"
            " AND p.fact = (SELECT seq FROM facts WHERE id = ?)"
            " AND a.sha256 IN (SELECT value FROM json_each(?)) ORDER BY p.plan DESC LIMIT 1",
            (fact_id, json.dumps(list(lineage))),
        )
        return None if found is None else int(found)

    # --- retracted facts -----------------------------------------------------------------------

    def forbidden_count(self, lineage: Sequence[str]) -> int:
        """How many retracted facts some adapter of a lineage learnt or replayed."""
        return int(self._db.one(_FORBIDDEN, {"lineage": json.dumps(list(lineage))}))

    def bars(self, lineage: Sequence[str]) -> bool:
        """Whether a lineage knows a fact that was retracted."""
        return self.forbidden_count(lineage) > 0

    def knows_retracted(self, plan_id: int) -> bool:
        """Whether a plan learns or replays a fact that was retracted."""
        found = self._db.one(
            "SELECT 1 FROM facts f JOIN plan_facts p ON p.fact = f.seq"
            " WHERE p.plan = ? AND f.validity = 'retracted' LIMIT 1",
            (plan_id,),
        )
        return bool(found)

    def retracted_in(self, lineage: Sequence[str]) -> frozenset[int]:
        """Row numbers of the retracted facts that some adapter of a lineage learnt or replayed."""
        rows = self._db.rows(
            "SELECT DISTINCT p.fact FROM plan_facts p JOIN retractions r ON r.fact = p.fact"
            " JOIN adapters a ON a.plan = p.plan"
            " WHERE a.sha256 IN (SELECT value FROM json_each(?))",
            (json.dumps(list(lineage)),),
        )
        return frozenset(row[0] for row in rows)


def _of(lineage: Sequence[str], now: datetime) -> dict[str, str]:
    return {"lineage": json.dumps(list(lineage)), "now": stamp(now)}
