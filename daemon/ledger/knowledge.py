"""What a lineage of adapters knows, and which retracted facts it may have seen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Final, NamedTuple

from daemon.ledger.ancestry import Ancestry
from daemon.ledger.database import Database, stamp
from daemon.ledger.facts import VALID
from policies.planning import even_sample

_PLANS: Final = "(SELECT value FROM json_each(:plans))"
_LEARNT: Final = f"p.plan IN {_PLANS} AND p.learnt IS NOT 0"
# Learnt by one of the plans, and by a later one of them found not to be learnt.
_MISSED: Final = (
    f"EXISTS (SELECT 1 FROM plan_facts m WHERE m.fact = p.fact AND m.learnt = 0"
    f" AND m.plan > p.plan AND m.plan IN {_PLANS})"
)
# Of all facts, few are invalid or missed: those are looked up, not the known ones.
_NOT_KNOWN: Final = (
    "FROM facts f INDEXED BY facts_validity WHERE f.seq >= :first AND f.seq < :end"
    f" AND ((NOT ({VALID})"
    " AND EXISTS (SELECT 1 FROM plan_facts p WHERE p.fact = f.seq AND {learnt}))"
    " OR (f.seq IN (SELECT fact FROM plan_facts WHERE learnt = 0)"
    " AND EXISTS (SELECT 1 FROM plan_facts p WHERE p.fact = f.seq AND {learnt})"
    " AND NOT EXISTS (SELECT 1 FROM plan_facts p WHERE p.fact = f.seq AND {learnt}"
    " AND NOT {missed})))"
).format(learnt=_LEARNT, missed=_MISSED)
_NEXT_EDGES: Final = (
    "SELECT min(CASE WHEN valid_from > :now THEN valid_from END),"
    " min(CASE WHEN valid_until > :now THEN valid_until END) FROM facts INDEXED BY facts_validity"
)
_END: Final = 1 << 62
_NEVER: Final = "9999-99"
_WINDOW: Final = 5000
_PIECE: Final = 1000
_SUPERSEDED: Final = (
    "SELECT f.id, n.id, p.plan, f.lost_after FROM facts f INDEXED BY facts_replaced"
    " JOIN facts n ON n.id = f.replaced_by JOIN plan_facts p ON p.fact = f.seq"
    " WHERE f.replaced_by IS NOT NULL"
    " AND (f.validity = 'superseded' OR (f.validity = 'valid' AND f.valid_until <= :now))"
    f" AND p.learnt IS NOT 0 AND p.plan IN {_PLANS} AND n.seq IN (SELECT fact FROM plan_facts"
    f" WHERE plan = :plan OR (learnt IS NOT 0 AND plan IN {_PLANS})) ORDER BY f.seq DESC"
)
_RETRACTED: Final = (
    "SELECT p.plan, r.fact, f.lost_after FROM retractions r"
    " JOIN plan_facts p ON p.fact = r.fact JOIN facts f ON f.seq = r.fact"
)


class _Counted(NamedTuple):
    """How many facts a lineage knows, at any moment from `since` to before `until`."""

    key: tuple[tuple[str, ...], tuple[int, int]]
    since: str
    until: str
    known: int


class Knowledge:
    """Facts by the lineage that learnt them; derived from its plans, not kept for each fact."""

    def __init__(self, db: Database, ancestry: Ancestry) -> None:
        self._db = db
        self._ancestry = ancestry
        self._counted: _Counted | None = None
        self._seen: tuple[tuple[int, int], dict[Any, frozenset[int]]] = (0, 0), {}

    def known_count(self, lineage: Iterable[str], now: datetime) -> int:
        """How many valid facts the adapters of a lineage know.

        Counted once as long as nothing is written and no fact begins or ends to be valid: while
        facts gather it is asked for at every look.
        """
        asked, key = stamp(now), (tuple(lineage), self._db.version)
        seen = self._counted
        if seen is None or seen.key != key or not seen.since <= asked < seen.until:
            seen = self._count(key, asked)
            if not self._db.connection.in_transaction:  # what is not kept yet may still be undone
                self._counted = seen
        return seen.known

    def _count(self, key: tuple[tuple[str, ...], tuple[int, int]], now: str) -> _Counted:
        plans = _listed(self._ancestry.knows(key[0]))
        asked = {"plans": plans, "now": now, "first": 0, "end": _END}
        learnt = self._db.one(
            f"SELECT count(DISTINCT p.fact) FROM plan_facts p WHERE {_LEARNT}", asked
        )
        lost = self._db.one(f"SELECT count(*) {_NOT_KNOWN}", asked)
        edges = self._db.row(_NEXT_EDGES, {"now": now}) or ()
        until = min((edge for edge in edges if edge is not None), default=_NEVER)
        return _Counted(key, now, until, int(learnt) - int(lost))

    def known_ids(
        self, lineage: Iterable[str], now: datetime, limit: int | None = None, *, seed: int = 0
    ) -> tuple[str, ...]:
        """Valid facts that a lineage knows, in the order of their coming: all, or an even sample.

        The sample takes from every batch its share and depends on `seed`.
        """
        lineage = tuple(lineage)
        if limit is None:
            return tuple(self.each_known(lineage, now))
        places = even_sample(self.known_count(lineage, now), limit, seed)
        return tuple(self._ids(_at(places, self._known(lineage, now))))

    def each_known(self, lineage: Iterable[str], now: datetime) -> Iterator[str]:
        """All valid facts that a lineage knows, read a piece at a time."""
        return self._ids(self._known(tuple(lineage), now))

    def _known(self, lineage: tuple[str, ...], now: datetime) -> Iterator[int]:
        """Their row numbers in ascending order."""
        asked = {"plans": _listed(self._ancestry.knows(lineage)), "now": stamp(now)}
        end = int(self._db.one("SELECT coalesce(max(seq), 0) FROM facts")) + 1
        for first in range(0, end, _WINDOW):
            window = {**asked, "first": first, "end": first + _WINDOW}
            learnt = self._db.rows(
                "SELECT p.fact FROM plan_facts p"
                f" WHERE p.fact >= :first AND p.fact < :end AND {_LEARNT}",
                window,
            )
            lost = self._db.rows(f"SELECT f.seq {_NOT_KNOWN}", window)
            yield from sorted({seq for (seq,) in learnt}.difference(seq for (seq,) in lost))

    def _ids(self, numbers: Iterator[int]) -> Iterator[str]:
        while piece := list(islice(numbers, _PIECE)):
            for (identity,) in self._db.rows(
                "SELECT f.id FROM json_each(?) c CROSS JOIN facts f ON f.seq = c.value"
                " ORDER BY c.key",
                (json.dumps(piece),),
            ):
                yield identity

    def superseded_ids(
        self, lineage: Iterable[str], plan_id: int, now: datetime, limit: int
    ) -> tuple[tuple[str, str], ...]:
        """Facts that a lineage learnt and that have since given way to another, which the lineage
        or this plan learns: the latest pairs (old, new).
        """
        saw = self._ancestry.saw(lineage)
        parameters = {"plans": _listed(saw), "now": stamp(now), "plan": plan_id}
        found = {
            old: new
            for old, new, plan, lost in self._db.rows(_SUPERSEDED, parameters)
            if lost is None or lost >= saw[plan]
        }
        return tuple(found.items())[:limit]

    def taught_by(self, fact_id: str, lineage: Sequence[str]) -> int | None:
        """The plan whose adapter, one of the lineage, knows a fact; the latest of several."""
        for sha256 in reversed(lineage):
            found = self._db.one(
                f"SELECT 1 FROM plan_facts p WHERE {_LEARNT} AND NOT {_MISSED}"
                " AND p.fact = (SELECT seq FROM facts WHERE id = :fact) LIMIT 1",
                {"plans": _listed(self._ancestry.knows([sha256])), "fact": fact_id},
            )
            if found:
                return self._ancestry.maker(sha256)
        return None

    def behind(self, sha256: str) -> tuple[int | None, frozenset[int]]:
        """The plan that made an adapter, and the plans whose facts the adapter knows."""
        return self._ancestry.maker(sha256), frozenset(self._ancestry.knows([sha256]))

    def batches(self, lineage: Iterable[str]) -> tuple[int, ...]:
        """Row numbers of the batches from which a lineage learnt facts."""
        rows = self._db.rows(
            f"SELECT DISTINCT batch FROM plan_batches WHERE plan IN {_PLANS}",
            {"plans": _listed(self._ancestry.knows(lineage))},
        )
        return tuple(row[0] for row in rows)

    # --- retracted facts -----------------------------------------------------------------------

    def forbidden_count(self, lineage: Iterable[str]) -> int:
        """How many retracted facts some adapter of a lineage may have learnt or replayed."""
        return len(self.retracted_in(lineage))

    def is_tainted(self, lineage: Iterable[str]) -> bool:
        """Whether a lineage may know a fact that was retracted."""
        return bool(self.retracted_in(lineage))

    def knows_retracted(self, plan_id: int) -> bool:
        """Whether what a plan trains may learn or replay a fact that was retracted."""
        return bool(self.retracted_in(plans=(plan_id,)))

    def retracted_in(
        self, lineage: Iterable[str] = (), plans: Iterable[int] = ()
    ) -> frozenset[int]:
        """Row numbers of the retracted facts that adapters or plans may have learnt or replayed.

        Counted once for each number of retractions and plans: it is asked for at every look.
        """
        retracted = int(self._db.one("SELECT count(*) FROM retractions"))
        if not retracted:
            return frozenset()
        state = retracted, int(self._db.one("SELECT coalesce(max(id), 0) FROM plans"))
        if self._seen[0] != state:
            self._seen = state, {}
        asked = tuple(lineage), tuple(plans)
        if asked in self._seen[1]:
            return self._seen[1][asked]
        saw = self._ancestry.saw(*asked)
        found = frozenset(
            fact
            for plan, fact, lost in self._db.rows(_RETRACTED)
            if plan in saw and lost >= saw[plan]
        )
        if not self._db.connection.in_transaction:  # what is not kept yet may still be undone
            self._seen[1][asked] = found
        return found

    def tainted_adapters(self, handles: Sequence[str]) -> frozenset[str]:
        """Every adapter that may have learnt or replayed one of these retracted facts."""
        lost: dict[int, int] = {}
        for plan, _, since in self._db.rows(
            f"{_RETRACTED} WHERE r.handle IN (SELECT value FROM json_each(?))",
            (json.dumps(list(handles)),),
        ):
            lost[plan] = max(since, lost.get(plan, 0))
        return self._ancestry.tainted(lost)


def _at(places: Iterable[int], values: Iterator[int]) -> Iterator[int]:
    """The values at these places, which ascend; those that there are."""
    gone = 0
    for place in places:
        yield from islice(values, place - gone, place - gone + 1)
        gone = place + 1


def _listed(plans: Iterable[int]) -> str:
    return json.dumps(list(plans))
