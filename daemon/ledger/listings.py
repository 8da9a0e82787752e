"""What pages list: a piece of something long, from a place on; quick however much there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from daemon.ledger.database import Database, marks, stamp, unstamp
from daemon.ledger.events import EVENT_COLUMNS, event_of
from daemon.ledger.records import BadLine, Event, FactPlan
from policies.records import OPEN_STATES, Fact

_ID: Final = 32


class Listings:
    """Reads only."""

    def __init__(self, db: Database) -> None:
        self._db = db

    # --- now -----------------------------------------------------------------------------------

    def target_moved(self) -> tuple[datetime | None, str]:
        """Since when the target is what it is, and because of what."""
        row = self._db.row("SELECT moved_at, because FROM target")
        return (None, "") if row is None else (unstamp(row[0]), str(row[1]))

    def waiting(self) -> tuple[int, datetime | None]:
        """How many facts wait to be learnt, and since when the first of them does."""
        # Left to itself SQLite counts by a larger index, which holds every fact.
        count = int(
            self._db.one(
                "SELECT count(*) FROM facts INDEXED BY facts_pending WHERE state = 'pending'"
            )
        )
        first = [
            at
            for urgent in (1, 0)
            for (at,) in self._db.rows(
                "SELECT recorded_at FROM facts WHERE state = 'pending' AND urgent = ?"
                " ORDER BY seq LIMIT 1",
                (urgent,),
            )
        ]
        return count, unstamp(min(first)) if first else None

    def learnt(self) -> int:
        """How many facts the plans that are live have learnt."""
        return self._db.counted("learnt", self._learnt)

    def _learnt(self) -> int:
        planned = self._db.one(
            "SELECT coalesce(sum(facts), 0) FROM plans WHERE state = 'live' AND kind = 'learn'"
        )
        missed = self._db.one(
            "SELECT count(*) FROM plan_facts f INDEXED BY plan_facts_missed"
            " JOIN plans p ON p.id = f.plan"
            " WHERE f.learnt = 0 AND p.state = 'live' AND p.kind = 'learn'"
        )
        return int(planned) - int(missed)

    def batch_states(self) -> dict[str, int]:
        """How many batches stand where, as `Batches.state` says of each."""
        opened = ",".join(f"'{state.value}'" for state in sorted(OPEN_STATES))
        rows = self._db.rows(
            "SELECT CASE WHEN under_way OR (live AND fresh) THEN 'learning'"
            " WHEN fresh THEN 'waiting' WHEN live THEN 'live' ELSE coalesce(last, 'empty') END,"
            f" count(*) FROM (SELECT b.seq, total(p.state IN ({opened})) AS under_way,"
            " total(p.state = 'live') AS live, p.state AS last, max(p.id),"
            " b.seq IN (SELECT batch FROM facts INDEXED BY facts_pending"
            " WHERE state = 'pending' AND misses = 0) AS fresh"
            " FROM batches b LEFT JOIN plan_batches o ON o.batch = b.seq LEFT JOIN plans p"
            " ON p.id = o.plan AND p.kind = 'learn' AND p.state <> 'cancelled'"
            " WHERE b.complete GROUP BY b.seq) GROUP BY 1"
        )
        return {str(state): int(count) for state, count in rows}

    def plan_states(self) -> dict[str, int]:
        """How many plans are in each state."""
        rows = self._db.rows("SELECT state, count(*) FROM plans GROUP BY state")
        return {str(state): int(count) for state, count in rows}

    # --- events --------------------------------------------------------------------------------

    def events(
        self, kinds: Sequence[str], before: int | None = None, limit: int = 50
    ) -> tuple[Event, ...]:
        """Events of some kinds (of all where none is named) before a number, the newest first."""
        where = f"AND kind IN ({marks(kinds)})" if kinds else ""
        rows = self._db.rows(
            f"SELECT {EVENT_COLUMNS} FROM events NOT INDEXED WHERE seq < ? {where}"
            " ORDER BY seq DESC LIMIT ?",
            (1 << 62 if before is None else before, *kinds, limit),
        )
        return tuple(event_of(row) for row in rows)

    def events_after(self, seq: int, limit: int) -> tuple[Event, ...]:
        """The events behind a number, in order."""
        rows = self._db.rows(
            f"SELECT {EVENT_COLUMNS} FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)
        )
        return tuple(event_of(row) for row in rows)

    def events_of_plans(self, plans: Sequence[int]) -> dict[int, tuple[Event, ...]]:
        """What happened to each of some plans, in order."""
        found: dict[int, list[Event]] = {plan: [] for plan in plans}
        columns = EVENT_COLUMNS.replace("seq,", "v.seq,", 1)
        for plan, *row in self._db.rows(
            f"SELECT e.value, {columns} FROM json_each(?) e"
            " CROSS JOIN events v ON v.subject = 'plan:' || e.value ORDER BY v.seq",
            (json.dumps(list(plans)),),
        ):
            found[plan].append(event_of(tuple(row)))
        return {plan: tuple(events) for plan, events in found.items()}

    def next_event(self, kind: str, moment: datetime, *, after: bool) -> Event | None:
        """The first event of a kind after a moment, or the last one up to it."""
        sign, order = (">", "") if after else ("<=", " DESC")
        row = self._db.row(
            f"SELECT {EVENT_COLUMNS} FROM events WHERE kind = ? AND at {sign} ?"
            f" ORDER BY at{order}, seq{order} LIMIT 1",
            (kind, stamp(moment)),
        )
        return None if row is None else event_of(row)

    # --- plans and revisions -------------------------------------------------------------------

    def revision_of(self, plan: int) -> int | None:
        """The revision that a plan made, if it made one."""
        return self.revisions_of([plan]).get(plan)

    def revisions_of(self, plans: Sequence[int]) -> dict[int, int]:
        """The revisions that some plans made, by plan; without the plans that made none."""
        rows = self._db.rows(
            "SELECT r.plan, r.number FROM json_each(?) e"
            " CROSS JOIN revisions r ON r.plan = e.value",
            (json.dumps(list(plans)),),
        )
        return dict(rows)

    def ancestors_of(self, number: int, limit: int) -> tuple[int, ...]:
        """The revisions on which one was built, the nearest first."""
        rows = self._db.rows(
            "WITH RECURSIVE chain (number, parent) AS (SELECT number, parent FROM revisions"
            " WHERE number = ? UNION ALL SELECT r.number, r.parent FROM chain c"
            " CROSS JOIN revisions r ON r.number = c.parent LIMIT ?) SELECT number FROM chain",
            (number, limit + 1),
        )
        return tuple(row[0] for row in rows[1:])

    def children_of(self, number: int) -> tuple[int, ...]:
        """The revisions that were built on one."""
        plans = "SELECT id FROM plans WHERE parent = ? AND state IN ('live', 'rolled-back')"
        rows = self._db.rows(
            f"SELECT number FROM revisions WHERE plan IN ({plans}) ORDER BY number", (number,)
        )
        return tuple(row[0] for row in rows)

    def undecided(self, limit: int = 5) -> tuple[int, ...]:
        """The latest plans about which a person has to decide."""
        rows = self._db.rows(
            "SELECT id FROM plans WHERE state = 'inconclusive' ORDER BY id DESC LIMIT ?", (limit,)
        )
        return tuple(row[0] for row in rows)

    # --- facts ---------------------------------------------------------------------------------

    def latest_facts(self, limit: int, before: int | None = None) -> tuple[tuple[int, Fact], ...]:
        """The facts that came last before a place, the newest first, each with its place."""
        rows = self._db.rows(
            "SELECT seq, body FROM facts WHERE seq < ? AND op <> 'retract' ORDER BY seq DESC"
            " LIMIT ?",
            (1 << 62 if before is None else before, limit),
        )
        return tuple((int(seq), Fact.model_validate_json(body)) for seq, body in rows)

    def versions(self, fact_id: str, limit: int = 50) -> tuple[tuple[str, str, str, datetime], ...]:
        """Every fact of a fact's key: id, answer, validity, when it was recorded; the oldest
        first."""
        rows = self._db.rows(
            "SELECT id, answer, validity, recorded_at FROM facts WHERE op <> 'retract' AND"
            " key = (SELECT key FROM facts WHERE id = ?) ORDER BY seq LIMIT ?",
            (fact_id, limit),
        )
        return tuple((i, answer, validity, unstamp(at)) for i, answer, validity, at in rows)

    def plans_of(self, fact_id: str, limit: int = 20) -> tuple[FactPlan, ...]:
        """The plans that had a fact, the newest first; `learnt` as the gate found it."""
        rows = self._db.rows(
            "SELECT p.id, p.kind, p.state, f.learnt, p.moved_at, p.adapter, r.number"
            " FROM plan_facts f JOIN plans p ON p.id = f.plan"
            " LEFT JOIN revisions r ON r.plan = p.id"
            " WHERE f.fact = (SELECT seq FROM facts WHERE id = ?) ORDER BY p.id DESC LIMIT ?",
            (fact_id, limit),
        )
        return tuple(
            FactPlan(
                plan=plan,
                kind=kind,
                state=state,
                learnt=None if learnt is None else bool(learnt),
                moved_at=unstamp(moved_at),
                adapter=adapter,
                revision=revision,
            )
            for plan, kind, state, learnt, moved_at, adapter, revision in rows
        )

    # --- quarantine ----------------------------------------------------------------------------

    def bad_lines(
        self, batch_id: str | None = None, before: int | None = None, limit: int = 50
    ) -> tuple[BadLine, ...]:
        """Lines in quarantine that are kept in words, the latest first, of one batch or of all."""
        where, of = ("", ()) if batch_id is None else ("AND b.id = ?", (batch_id,))
        rows = self._db.rows(
            "SELECT q.id, b.id, b.name, q.line, q.kind, q.reason, q.text FROM quarantine q"
            f" JOIN batches b ON b.seq = q.batch WHERE q.id < ? {where}"
            " ORDER BY q.id DESC LIMIT ?",
            (1 << 62 if before is None else before, *of, limit),
        )
        names = ("place", "batch", "name", "line", "kind", "reason", "text")
        return tuple(BadLine(**dict(zip(names, row, strict=True))) for row in rows)

    def arriving(self, batch_id: str) -> bool:
        """Whether a batch of this whole id is not known yet, or not read to its end."""
        found = self._db.one("SELECT complete FROM batches WHERE id = ?", (batch_id,))
        return found == 0 or (found is None and len(batch_id) == _ID)

    # --- verdicts ------------------------------------------------------------------------------

    def verdicts(self, limit: int) -> tuple[tuple[int, str, str | None, dict[str, Any]], ...]:
        """Plan, its state, the name of what it published and its verdict as stored: the latest
        ones, the oldest first."""
        rows = self._db.rows(
            "SELECT v.plan, p.state, p.served, v.body FROM verdicts v JOIN plans p ON p.id = v.plan"
            " ORDER BY v.plan DESC LIMIT ?",
            (limit,),
        )
        return tuple(
            (plan, state, json.loads(served)["name"] if served else None, json.loads(body))
            for plan, state, served, body in reversed(rows)
        )

    def scorecard(self, plan: int, model: str) -> dict[str, Any] | None:
        """One model's answers on which a plan's verdict rests, as stored."""
        body = self._db.one(
            "SELECT body FROM scorecards WHERE plan = ? AND model = ?", (plan, model)
        )
        return None if body is None else dict(json.loads(body))
