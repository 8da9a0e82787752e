"""What planning asks of the ledger, and the plan that it decides on."""

from __future__ import annotations

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
from policies.records import Plan, Revision

NO_SPACE: Final = "NoFreeSpace"
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
        self._grown: tuple[tuple[int, int], tuple[int, int]] | None = None

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
        began_with, gone_on = self._growth(target) if idle and limits.retrain_at else (0, 0)
        return common.model_copy(
            update={
                "ranks": ranks,
                "known": self._knowledge.known_count(target.lineage, now) if needs_known else 0,
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
        newest = int(self._db.one("SELECT coalesce(max(id), 0) FROM plans"))
        if self._grown is None or self._grown[0] != (target.number, newest):
            last = int(
                self._db.one(
                    f"SELECT coalesce(max(id), 0) FROM plans WHERE (kind IN ({_REBUILDS})"
                    " AND state <> 'cancelled') OR (replaces = '[]' AND state = 'live')"
                )
            )
            began_with = self._db.one(
                "SELECT count(*) FROM plan_facts WHERE plan = ? AND role = 'learn'", (last,)
            )
            gone_on = self._db.one(
                "SELECT count(*) FROM plan_facts p JOIN plans ON plans.id = p.plan"
                " WHERE p.plan > ? AND p.role = 'learn' AND plans.state = 'live'",
                (last,),
            )
            self._grown = (target.number, newest), (int(began_with), int(gone_on))
        return self._grown[1]

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

    def make_plan(self, action: MakePlan, now: datetime, *, max_replay: int) -> Plan:
        """The plan that planning decided on, its facts and what it replays filled in.

        A rebuild learns every valid fact of the lineage. A `learn` plan goes on knowing those of
        the adapters that it replaces (`again`), and replays an even sample of the others.
        """
        target = self._revisions.target()
        everything = 1 << 62
        replaced = self._knowledge.known_ids(action.replaces, now, everything)
        rebuilds = action.kind in REBUILDS
        facts, again = (replaced, ()) if rebuilds else (action.fact_ids, replaced)
        kept = [sha256 for sha256 in target.lineage if sha256 not in action.replaces]
        replay = self._knowledge.known_ids(kept, now, max_replay)
        learnt = {*facts, *again}
        return self._plans.create(
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
