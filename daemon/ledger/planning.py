"""What planning asks of the ledger, and the plan that it decides on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from daemon.ledger.database import Database
from daemon.ledger.facts import Facts
from daemon.ledger.knowledge import Knowledge
from daemon.ledger.meta import Meta
from daemon.ledger.plans import Plans
from daemon.ledger.records import PlanHead
from daemon.ledger.revisions import Revisions
from daemon.ledger.steps import Steps
from policies.planning import REBUILDS, Limits, MakePlan, OpenPlan, Snapshot
from policies.records import Revision

NO_SPACE: Final = "NoFreeSpace"
SEEDS: Final = 1_000_003
_REBUILDS: Final = ",".join(f"'{kind.value}'" for kind in sorted(REBUILDS))


class Planning:
    """The snapshot and the next plan."""

    def __init__(
        self,
        db: Database,
        meta: Meta,
        facts: Facts,
        plans: Plans,
        steps: Steps,
        revisions: Revisions,
        knowledge: Knowledge,
    ) -> None:
        self._db = db
        self._meta = meta
        self._facts = facts
        self._plans = plans
        self._steps = steps
        self._revisions = revisions
        self._knowledge = knowledge
        self._grown: tuple[tuple[int, int], tuple[int, int]] = (-1, -1), (0, 0)

    def snapshot(self, now: datetime, limits: Limits, *, probe_ready: bool = True) -> Snapshot:
        """What planning needs; quick however many facts there are."""
        target, under_way = self._revisions.target(), self._plans.open_plan()
        common = Snapshot(
            limits=limits,
            paused=self._meta.paused,
            probe_ready=probe_ready,
            lineage=target.lineage,
            open=None if under_way is None else self._opened(under_way, target),
        )
        if common.open is not None:
            return common
        ranks = tuple(self._steps.adapter(sha256).rank for sha256 in target.lineage)
        forbidden = self._knowledge.forbidden_count(target.lineage)
        no_space = self._had_no_space(target)
        waiting = self._facts.waiting(now, limits.max_facts)
        needs_known = bool(forbidden) or no_space or bool(waiting)
        idle = bool(target.lineage) and not (forbidden or waiting)
        scratch_facts, added_facts = self._growth() if idle and limits.retrain_at else (0, 0)
        return common.model_copy(
            update={
                "ranks": ranks,
                "known": self._knowledge.known_count(target.lineage, now) if needs_known else 0,
                "forbidden": forbidden,
                "refused_rebuilds": self._refused_rebuilds(target),
                "no_space": no_space,
                "scratch_facts": scratch_facts,
                "added_facts": added_facts,
                "waiting": waiting,
            }
        )

    def _growth(self) -> tuple[int, int]:
        """How many facts the last adapter on the bare base learnt, and how many came since.

        Counted once as long as nothing is written: an idle daemon asks at every look.
        """
        if self._grown[0] != (version := self._db.version):
            self._grown = version, self._count_growth()
        return self._grown[1]

    def _count_growth(self) -> tuple[int, int]:
        last = int(
            self._db.one(
                f"SELECT coalesce(max(id), 0) FROM plans WHERE (kind IN ({_REBUILDS})"
                " AND state <> 'cancelled') OR (replaces = '[]' AND state = 'live')"
            )
        )
        scratch_facts = self._db.one("SELECT facts FROM plans WHERE id = ?", (last,))
        added_facts = self._db.one(
            "SELECT coalesce(sum(facts), 0) FROM plans WHERE id > ? AND state = 'live'", (last,)
        )
        return int(scratch_facts or 0), int(added_facts)

    def _opened(self, head: PlanHead, target: Revision) -> OpenPlan:
        builds_on = self._revisions.get(head.parent).lineage == target.lineage
        fits = builds_on and not self._knowledge.knows_retracted(head.id)
        leased = self._db.one("SELECT 1 FROM leases WHERE plan = ?", (head.id,))
        return OpenPlan(
            **head.model_dump(
                include={"id", "kind", "state", "attempts", "interruptions", "not_before"}
            ),
            fits=fits,
            leased=bool(leased),
        )

    def _had_no_space(self, target: Revision) -> bool:
        found = self._db.one(
            "SELECT 1 FROM plans"
            " WHERE parent = ? AND error_kind = ? AND state = 'cancelled' LIMIT 1",
            (target.number, NO_SPACE),
        )
        return bool(found)

    def _refused_rebuilds(self, target: Revision) -> int:
        return int(
            self._db.one(
                f"SELECT count(*) FROM plans WHERE parent = ? AND kind IN ({_REBUILDS})"
                " AND state IN ('rejected', 'inconclusive', 'failed')",
                (target.number,),
            )
        )

    # --- plans ---------------------------------------------------------------------------------

    def make_plan(self, action: MakePlan, now: datetime, *, max_replay: int) -> PlanHead:
        """The plan that planning decided on.

        A rebuild learns every valid fact of the lineage. A `learn` plan replays an even sample of
        at most `max_replay` of them beside its own.
        """
        target = self._revisions.target()
        rebuilds = action.kind in REBUILDS
        known = self._knowledge.known_count(target.lineage, now)
        return self._plans.create(
            action.kind,
            parent=target.number,
            replaces=action.replaces,
            fact_ids=action.fact_ids,
            rebuilt=known if rebuilds else 0,
            replays=0 if rebuilds else min(known, max_replay),
            batches=self._knowledge.batches(action.replaces) if rebuilds else (),
            rank=action.rank,
            seed=action.seed,
            because=action.because,
            now=now,
        )

    def to_learn(self, plan: PlanHead, limit: int | None = None) -> tuple[str, ...]:
        """What a plan learns: all of it, or of a rebuild an even sample of at most `limit`.

        A rebuild learns what the adapters that it replaces know and what is still valid.
        """
        if plan.kind not in REBUILDS:
            return self._plans.fact_ids(plan.id)
        return self._knowledge.known_ids(plan.replaces, plan.created_at, limit)

    def each_to_learn(self, plan: PlanHead) -> Iterator[str]:
        """All that a plan learns, in the same order, read a piece at a time."""
        if plan.kind not in REBUILDS:
            return iter(self._plans.fact_ids(plan.id))
        return self._knowledge.each_known(plan.replaces, plan.created_at)

    def to_replay(self, plan: PlanHead) -> tuple[str, ...]:
        """What a plan replays: an even sample over what the lineage that it builds on knows and
        what is still valid, without the plan's own facts; another one for each plan.
        """
        if not plan.replays:
            return ()
        lineage = self._revisions.get(plan.parent).lineage
        known = self._knowledge.known_ids(
            lineage, plan.created_at, plan.replays, seed=plan.seed * SEEDS + plan.id
        )
        own = set(self._plans.fact_ids(plan.id))
        return tuple(fact_id for fact_id in known if fact_id not in own)
