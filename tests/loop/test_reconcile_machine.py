"""Whatever happens in whatever order, what must hold holds, and it always comes to rest."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from daemon.loop.requests import limits_of
from policies.errors import RequestRefused
from policies.gate.records import Outcome
from policies.planning import Limits
from policies.records import OPEN_STATES, BatchState, PlanState, Priority
from tests.support.world import World

FACTS = st.integers(1, 8)
OUTCOMES = st.sampled_from(Outcome)
PLACES = ("pending", "planned", "done", "unlearnt", "rejected", "idle")


class Life(RuleBasedStateMachine):
    """Drops, ticks, children that report, fail or die, rollbacks, retractions, people."""

    @initialize()
    def begin(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.world = World(Path(self._folder.name), {"train": {"attempts": 2, "relearn": 1}})
        self.ledger = self.world.ledger
        self.batches: list[str] = []
        self.retracted: set[str] = set()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        self.ledger.meta.pause(False, "", self.world.now)
        self.world.settle(limit=400)
        self.check()
        assert self.ledger.plans.open_plan() is None
        assert self.ledger.steps.leases() == ()
        target = self.ledger.revisions.target()
        if self.ledger.knowledge.forbidden_count(target.lineage):
            assert (
                self.ledger.planning.snapshot(self.world.now, limits(self.world)).refused_rebuilds
                >= 2
            )
        assert self.ledger.events.verify_chain() > 0
        self.world.serve()
        assert self.world.fleet.serves == target
        self.ledger.close()
        self._folder.cleanup()

    # --- what can happen -----------------------------------------------------------------------

    @rule(count=FACTS, urgent=st.booleans())
    def drop(self, count: int, urgent: bool) -> None:
        priority = Priority.URGENT if urgent else Priority.NORMAL
        self.batches.append(self.world.drop(count, priority=priority))

    @rule(seconds=st.sampled_from([0.5, 30.0]), times=st.integers(1, 4))
    def tick(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.world.tick(seconds)

    @precondition(lambda self: self.world.running is not None)
    @rule(outcome=OUTCOMES, misses=st.integers(0, 3))
    def finish(self, outcome: Outcome, misses: int) -> None:
        self.world.finish(outcome, missed=lambda fact: misses > 0 and fact.id.endswith("-0"))
        self.world.tick()

    @precondition(lambda self: self.world.running is not None)
    @rule(kind=st.sampled_from(["Broken", "NoFreeSpace"]), final=st.booleans())
    def fail(self, kind: str, final: bool) -> None:
        self.world.fail(kind, final=final and kind == "Broken")
        self.world.tick()

    @rule()
    def crash(self) -> None:
        self.world.crash()

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        numbers = [revision.number for revision in self.ledger.revisions.all()]
        target = self.ledger.revisions.get(data.draw(st.sampled_from(numbers)))
        try:
            self.ledger.revisions.rollback(target.number, "", self.world.now)
        except RequestRefused:
            assert self.ledger.knowledge.forbidden_count(target.lineage)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def retract(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        facts = self.ledger.facts.find(batch_id=batch)
        chosen = data.draw(st.sampled_from(facts))
        self.ledger.retractions.retract(chosen.id, "", self.world.now)
        self.retracted.add(chosen.id)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        try:
            self.ledger.batches.retry(batch, "", self.world.now)
        except RequestRefused:
            assert self.ledger.batches.state(batch) not in (BatchState.REJECTED, BatchState.FAILED)

    @rule(to=st.sampled_from([PlanState.PASSED, PlanState.REJECTED]))
    def decide(self, to: PlanState) -> None:
        for head in self.ledger.plans.heads({PlanState.INCONCLUSIVE}, limit=1):
            self.ledger.plans.decide(head.id, to, "a person", self.world.now)

    @rule(on=st.booleans())
    def pause(self, on: bool) -> None:
        self.ledger.meta.pause(on, "", self.world.now)

    # --- what must hold ------------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        if not hasattr(self, "world"):
            return
        assert len(self.world.jobs.running()) <= 1
        self._facts_are_in_one_place()
        self._the_target_can_be_served()
        self._states_agree()

    def _facts_are_in_one_place(self) -> None:
        rows = self.ledger.db.rows("SELECT id, state, validity, plan FROM facts")
        for fact_id, state, validity, plan in rows:
            assert state in PLACES
            assert validity == ("retracted" if fact_id in self.retracted else "valid")
            assert not (state == "pending" and validity != "valid")
            if state == "planned":
                assert self.ledger.plans.head(plan).state in OPEN_STATES | {
                    PlanState.FAILED,
                    PlanState.INCONCLUSIVE,
                }

    def _the_target_can_be_served(self) -> None:
        train, target = self.world.settings.train, self.ledger.revisions.target()
        rank = self.ledger.revisions.lineage_rank(target.lineage)
        assert rank <= self.world.settings.server.max_lora_rank
        for head in self.ledger.plans.heads():
            if head.kind == "learn":
                assert head.facts <= train.max_facts
        numbers = [revision.number for revision in self.ledger.revisions.all()]
        assert numbers == list(range(len(numbers)))

    def _states_agree(self) -> None:
        live = {r.plan_id for r in self.ledger.revisions.all() if r.number}
        for head in self.ledger.plans.heads():
            assert (head.id in live) == (head.state in (PlanState.LIVE, PlanState.ROLLED_BACK))
        for batch in self.batches:
            self.ledger.batches.state(batch)


def limits(world: World) -> Limits:
    return limits_of(world.settings)


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
