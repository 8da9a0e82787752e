"""The reconciler over a real ledger with children and replicas that do as they are told."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
from pydantic import BaseModel

from daemon.children.request import Rows
from daemon.serving.replica_status import NotServed
from daemon.training.messages import TrainRequest
from daemon.views import status
from policies.errors import ServerRefused, ServerUnreachable
from policies.gate.records import Outcome
from policies.planning import Discard, MakePlan, Promote, Run, Step
from policies.records import BatchState, PlanKind, PlanState
from tests.support.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def until_evaluating(world: World) -> None:
    """Probe and training are done, the evaluation runs."""
    for _ in range(20):
        if world.running is not None and world.running.name.endswith("evaluate"):
            return
        if world.running is not None:
            world.finish()
        world.tick()
    raise AssertionError("no evaluation began")


def test_a_batch_goes_live_step_by_step(world: World) -> None:
    batch = world.drop(3)
    assert isinstance(world.tick(), MakePlan)
    assert world.tick() == Run(plan=1, step=Step.PROBE)
    assert world.tick() is None
    world.finish()
    assert world.tick() == Run(plan=1, step=Step.TRAIN)
    world.finish()
    assert world.tick() == Run(plan=1, step=Step.EVALUATE)
    assert world.fleet.staged == [world.ledger.plans.head(1).served.name]  # type: ignore[union-attr]  # trained, so served
    world.finish()
    assert world.tick() == Promote(plan=1)
    assert world.ledger.batches.state(batch) is BatchState.LIVE
    assert world.told == [batch, batch]
    assert world.tick() is None
    world.ledger.events.verify_chain()


def test_writing_a_large_request_does_not_hold_up_the_loop(world: World) -> None:
    """A rebuild's holds every fact: with a hundred thousand of them it takes seconds to write."""
    world.drop(3)
    world.tick()
    goes_on = threading.Event()
    prepare = world.jobs.prepare

    def slowly(workdir: Path, record: BaseModel, *rows: Rows) -> None:
        loop.call_soon_threadsafe(goes_on.set)
        assert goes_on.wait(10), "the loop stood still beside it"
        prepare(workdir, record, *rows)

    with asyncio.Runner() as runner, mock.patch.object(world.jobs, "prepare", slowly):
        loop = runner.get_loop()
        runner.run(world.reconciler.tick(world.now))
    assert world.jobs.started == [("probe", world.settings.layout.workdir(1, Step.PROBE))]


@pytest.fixture
def stacking(tmp_path: Path) -> World:
    return World(tmp_path, {"train": {"lineage": "stack"}})


def test_the_former_adapter_goes_on_with_a_later_batch(world: World) -> None:
    world.drop(3)
    world.settle()
    (former,) = world.ledger.revisions.target().lineage
    world.drop(2)
    world.tick()
    world.tick()
    (request,) = world.jobs.requests.values()
    assert isinstance(request, TrainRequest)
    assert [fact.id for fact in request.facts] == ["b2-0", "b2-1"]
    assert [fact.id for fact in request.replay] == ["b1-0", "b1-1", "b1-2"]
    assert request.start == (world.settings.layout.adapter(former),)
    assert (request.number, request.lineage) == (2, ())
    world.settle()
    target = world.ledger.revisions.target()
    assert len(target.lineage) == 1
    assert target.lineage != (former,)
    assert world.ledger.knowledge.known_count(target.lineage, world.now) == 5
    assert world.ledger.knowledge.taught_by("b1-0", target.lineage) == target.plan_id


def test_a_later_batch_stands_on_the_former_and_rehearses_it(stacking: World) -> None:
    world = stacking
    world.drop(3)
    world.settle()
    world.drop(2)
    world.tick()
    world.tick()
    (request,) = world.jobs.requests.values()
    assert isinstance(request, TrainRequest)
    assert (request.number, len(request.lineage), len(request.replay)) == (2, 1, 3)
    assert request.start == ()
    world.settle()
    assert len(world.ledger.revisions.target().lineage) == 2


def test_a_large_batch_becomes_several_plans(world: World) -> None:
    batch = world.drop(14)
    world.settle()
    heads = world.ledger.plans.heads(batch_id=batch)
    assert [h.facts for h in heads] == [2, 6, 6]
    assert world.ledger.batches.state(batch) is BatchState.LIVE


def test_a_rejected_batch_changes_nothing_that_is_served(world: World) -> None:
    world.drop(2)
    world.settle()
    before = world.ledger.revisions.target()
    batch = world.drop(2)
    world.settle(Outcome.FAIL)
    assert world.ledger.revisions.target() == before
    assert world.ledger.batches.state(batch) is BatchState.REJECTED


def test_of_two_batches_in_one_rejected_plan_the_good_one_goes_live(world: World) -> None:
    good, bad = world.drop(2), world.drop(2)
    until_evaluating(world)
    world.finish(Outcome.FAIL)
    for _ in range(12):
        world.tick()
        if world.running is not None:
            head = world.ledger.plans.open_plan()
            assert head is not None
            batches = world.ledger.plans.batches(head.id)
            world.finish(Outcome.FAIL if batches == (bad,) else Outcome.PASS)
    assert world.ledger.batches.state(good) is BatchState.LIVE
    assert world.ledger.batches.state(bad) is BatchState.REJECTED


def test_facts_not_learnt_are_planned_again_boundedly(world: World) -> None:
    batch = world.drop(3)
    for _ in range(40):
        world.tick(60)
        if world.running is not None:
            world.finish(missed=lambda fact: fact.id.endswith("-2"))
    heads = world.ledger.plans.heads(batch_id=batch)
    assert [(h.facts, h.seed) for h in reversed(heads)] == [(3, 0), (1, 1), (1, 2)]
    assert world.ledger.batches.missed(batch) == ("b1-2",)
    assert world.ledger.batches.state(batch) is BatchState.LIVE


def test_an_inconclusive_candidate_waits_for_a_person_and_stops_nobody(world: World) -> None:
    first = world.drop(2)
    world.settle(Outcome.INCONCLUSIVE)
    assert world.ledger.batches.state(first) is BatchState.INCONCLUSIVE
    world.ledger.plans.decide(1, PlanState.PASSED, "looks good", world.now)
    world.settle()
    assert world.ledger.batches.state(first) is BatchState.LIVE
    second = world.drop(2)
    world.settle(Outcome.INCONCLUSIVE)
    third = world.drop(2)
    world.settle()
    assert world.ledger.batches.state(third) is BatchState.LIVE
    world.ledger.plans.decide(2, PlanState.PASSED, "late", world.now)
    world.settle()
    assert world.ledger.plans.get(2).state is PlanState.CANCELLED
    assert world.ledger.batches.state(second) is BatchState.LIVE


def test_the_rank_budget_leads_to_one_adapter_that_knows_everything(stacking: World) -> None:
    world = stacking
    batches = [world.drop(2) for _ in range(1)]
    for _ in range(5):
        world.settle()
        batches.append(world.drop(2))
    world.settle()
    kinds = [h.kind for h in reversed(world.ledger.plans.heads())]
    assert kinds.count(PlanKind.CONSOLIDATE) == 1
    lineage = world.ledger.revisions.target().lineage
    assert world.ledger.revisions.lineage_rank(lineage) <= world.settings.train.rank_budget
    assert world.ledger.knowledge.known_count(lineage, world.now) == 12
    assert {world.ledger.batches.state(b) for b in batches} == {BatchState.LIVE}


@pytest.mark.parametrize("outcome", [Outcome.PASS, Outcome.FAIL])
def test_an_adapter_is_begun_anew_at_each_doubling_of_its_facts(
    tmp_path: Path, outcome: Outcome
) -> None:
    """Also where the gate refuses it: the next is not tried before the next doubling."""
    world = World(tmp_path, {"train": {"retrain_at": 4}})
    anew = []
    for number in range(1, 9):
        world.drop(2)
        for _ in range(20):
            world.tick(60)
            head = world.ledger.plans.open_plan()
            if head is None or world.running is None:
                continue
            begun = head.kind is PlanKind.CONSOLIDATE
            request = next(iter(world.jobs.requests.values()))
            if isinstance(request, TrainRequest) and begun:
                assert (request.start, request.replay) == ((), ())
                assert len(request.facts) == 2 * number
                anew.append(number)
            world.finish(outcome if begun else Outcome.PASS)
        target = world.ledger.revisions.target()
        (built,) = target.lineage
        kept = world.ledger.plans.heads({PlanState.LIVE})[0]
        assert kept.adapter == built
        assert world.ledger.knowledge.known_count(target.lineage, world.now) == 2 * number
        refused = world.ledger.plans.heads({PlanState.REJECTED})
        assert len(refused) == (len(anew) if outcome is Outcome.FAIL else 0)
    assert anew == [2, 4, 8]


def test_no_free_directions_lead_to_consolidation(stacking: World) -> None:
    world = stacking
    for _ in range(2):
        world.drop(2)
        world.settle()
    world.drop(2)
    world.tick()
    world.tick()
    world.fail("NoFreeSpace")
    world.settle()
    assert PlanKind.CONSOLIDATE in [h.kind for h in world.ledger.plans.heads()]
    assert (
        world.ledger.knowledge.known_count(world.ledger.revisions.target().lineage, world.now) == 6
    )


def test_a_step_that_fails_is_tried_again_later_and_then_given_up(world: World) -> None:
    batch = world.drop(1)
    pauses = []
    for _ in range(2):
        while world.running is None or world.running.name.endswith("probe"):
            if world.running is not None:
                world.finish()
            world.tick(0)
        world.fail()
        world.tick(0)
        resting = 0
        while world.tick() is None:
            resting += 1
        pauses.append(resting)
    assert pauses == [9, 19]
    world.fail()
    world.tick(0)
    world.tick(0)
    plan = world.ledger.plans.get(1)
    assert plan.state is PlanState.FAILED
    assert plan.because == "failed 3 times: Broken happened"
    assert world.ledger.batches.state(batch) is BatchState.FAILED
    world.ledger.batches.retry(batch, "", world.now)
    world.settle()
    assert world.ledger.batches.state(batch) is BatchState.LIVE


@pytest.mark.parametrize(
    ("kind", "missing"), [("DiskFull", "room"), ("ClusterUnreachable", "the cluster")]
)
def test_what_is_no_fault_of_a_plan_is_waited_for(world: World, kind: str, missing: str) -> None:
    batch = world.drop(2)
    world.tick()
    world.tick()
    world.finish()
    world.tick()
    pauses = []
    for _ in range(12):
        assert world.running is not None
        world.fail(kind)
        world.tick()
        head = world.ledger.plans.head(1)
        assert (head.state, head.attempts) == (PlanState.PLANNED, 0)
        assert f"waits for {missing} and goes on by itself" in world.reconciler.waits_for
        waited = 0
        while world.running is None:
            world.tick()
            waited += 1
        pauses.append(waited)
    assert pauses == sorted(pauses)
    assert pauses[0] <= 2
    assert 290 <= pauses[-1] <= 310
    world.settle()
    assert world.ledger.batches.state(batch) is BatchState.LIVE
    assert world.reconciler.waits_for == ""
    world.ledger.events.verify_chain()


def test_what_cannot_get_better_is_not_tried_again(world: World) -> None:
    world.drop(1)
    world.tick()
    world.tick()
    world.fail(final=True)
    world.tick()
    assert world.ledger.plans.get(1).state is PlanState.FAILED


def test_a_child_that_stands_still_too_long_is_ended(world: World) -> None:
    world.drop(1)
    world.tick()
    world.tick()
    world.tick(world.settings.train.deadline_s + 1)
    assert world.running is None
    head = world.ledger.plans.head(1)
    assert head.attempts == 1
    assert "made no progress for train.deadline_s (3600 s)" in (head.error or "")


def test_a_child_that_goes_on_is_left_to_it_and_ended_once_it_stands_still(world: World) -> None:
    world.drop(1)
    world.tick()
    world.tick()
    allowed = world.settings.train.deadline_s
    for done in range(5):
        world.report_progress("train", done)
        world.tick(0.9 * allowed)
    assert world.running is not None
    world.tick(1.1 * allowed)
    assert world.running is None
    assert world.ledger.plans.head(1).attempts == 1


def test_a_killed_daemon_goes_on_where_it_was_and_counts_no_failure(world: World) -> None:
    batch = world.drop(2)
    for _ in range(30):
        world.tick(60)
        world.crash()
        world.tick(60)
        if world.running is not None:
            world.finish()
    assert world.ledger.batches.state(batch) is BatchState.LIVE
    assert len(world.ledger.plans.heads()) == 1
    assert world.ledger.plans.head(1).attempts == 0


def test_a_rollback_during_training_ends_it_and_the_facts_wait_anew(world: World) -> None:
    world.drop(1)
    world.settle()
    batch = world.drop(1)
    world.tick()
    world.tick()
    assert world.running is not None
    world.ledger.revisions.rollback(0, "wrong", world.now)
    assert isinstance(world.tick(), Discard)
    assert world.running is None
    world.settle()
    assert world.ledger.batches.state(batch) is BatchState.LIVE
    assert len(world.ledger.revisions.target().lineage) == 1


def test_a_retracted_fact_is_gone_from_the_next_revision(world: World) -> None:
    world.drop(3)
    world.settle()
    world.drop(2)
    world.settle()
    world.retract_line("b1-1")
    world.settle()
    target = world.ledger.revisions.target()
    assert len(target.lineage) == 1
    assert world.ledger.knowledge.forbidden_count(target.lineage) == 0
    assert world.ledger.knowledge.known_count(target.lineage, world.now) == 4


def test_when_nothing_valid_is_left_the_base_is_served(world: World) -> None:
    world.drop(1)
    world.settle()
    world.retract_line("b1-0")
    world.settle()
    assert world.ledger.revisions.target().number == 0


def test_a_fact_retracted_while_it_is_learnt_never_goes_live(world: World) -> None:
    world.drop(2)
    until_evaluating(world)
    world.ledger.retractions.retract("b1-0", "asked to", world.now)
    world.settle()
    target = world.ledger.revisions.target()
    assert world.ledger.knowledge.forbidden_count(target.lineage) == 0
    assert world.ledger.knowledge.known_count(target.lineage, world.now) == 1


def test_pausing_stops_what_is_new_and_nothing_else(world: World) -> None:
    world.drop(1)
    world.tick()
    world.tick()
    world.ledger.meta.pause(True, "maintenance", world.now)
    world.finish()
    assert [world.tick() for _ in range(3)] == [None] * 3
    assert world.running is None
    assert world.serve().done
    world.ledger.meta.pause(False, "", world.now)
    assert world.tick() == Run(plan=1, step=Step.TRAIN)


def test_a_candidate_that_takes_long_to_load_does_not_hold_up_the_ticks(world: World) -> None:
    """The weights of a large model take the server longer than a tick may wait."""
    world.drop(1)
    for _ in range(3):
        world.tick()
        if world.running is not None:
            world.finish()  # the probe, and the training
    loaded = asyncio.Event()
    stage = world.fleet.stage

    async def slowly(name: str) -> object:
        await loaded.wait()
        return await stage(name)

    async def go() -> None:
        began = time.monotonic()
        with mock.patch.object(world.fleet, "stage", slowly):
            assert [await world.reconciler.tick(world.now) for _ in range(2)] == [None, None]
            assert world.reconciler.beginning.under_way
            assert time.monotonic() - began < 1, "both ticks together"
            loaded.set()
            assert await world.reconciler.tick(world.now) == Run(plan=1, step=Step.EVALUATE)
        assert not world.reconciler.beginning.under_way

    asyncio.run(go())
    assert world.running is not None


def test_a_server_that_is_away_is_waited_for_without_counting(world: World) -> None:
    world.drop(1)
    world.fleet.fault = ServerUnreachable("http://replica: connection refused")
    for _ in range(10):
        world.tick()
        if world.running is not None:
            world.finish()
    assert world.ledger.plans.head(1).state is PlanState.TRAINED
    assert world.ledger.plans.head(1).attempts == 0
    assert "waits for the server" in world.reconciler.waits_for
    world.fleet.fault = None
    world.settle()
    assert world.reconciler.waits_for == ""
    assert world.ledger.revisions.target().number == 1


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [(NotServed("it is not the adapter that was published"), 1), (None, 3)],
)
def test_a_candidate_that_must_not_be_served_is_never_judged(
    world: World, fault: Exception | None, attempts: int
) -> None:
    world.drop(1)
    world.fleet.fault = fault or ServerRefused("500: rank above the maximum", status=500)
    for _ in range(60):
        world.tick(10)
        if world.running is not None:
            world.finish()
    head = world.ledger.plans.head(1)
    assert head.state is PlanState.FAILED
    assert str(world.fleet.fault) in head.because
    (explained,) = status.explain(world.ledger, "b1").plans
    assert str(world.fleet.fault) in (explained.because or "")
    assert world.ledger.revisions.target().number == 0
    assert len([e for e in world.ledger.events.latest() if e.kind == "stage.failed"]) == attempts


def test_what_is_served_follows_what_is_target(world: World) -> None:
    world.drop(1)
    until_evaluating(world)
    assert world.serve().done
    assert world.fleet.kept == (world.ledger.plans.head(1).served.name,)  # type: ignore[union-attr]  # trained, so served
    world.settle()
    assert not world.rollout.settled
    world.serve()
    assert world.rollout.settled
    assert world.fleet.serves == world.ledger.revisions.target()
    world.ledger.revisions.rollback(0, "", world.now)
    world.serve()
    assert world.fleet.serves == world.ledger.revisions.get(0)
    served = [e for e in world.ledger.events.latest() if e.kind == "served"]
    assert len(served) == 3


def test_another_base_under_the_revisions_is_refused_in_one_line(world: World) -> None:
    world.drop(1)
    world.settle()
    (world.settings.model.path / "config.json").write_text('{"other": 1}')
    world.ledger.meta.remember("base_sha256", "the former base")
    world.drop(1)
    world.tick()
    assert world.tick() == Run(plan=2, step=Step.PROBE)
    world.finish()
    world.tick()
    head = world.ledger.plans.head(2)
    assert head.state is PlanState.FAILED
    assert "another model than the one the revisions were trained on" in head.because


def test_a_probe_of_other_weights_is_looked_at_again(world: World) -> None:
    world.drop(1)
    world.tick()
    world.tick()
    world.finish()
    assert world.tick() == Run(plan=1, step=Step.TRAIN)
    world.fail("ProbeMismatch")
    world.tick()
    assert world.tick(60) == Run(plan=1, step=Step.PROBE)
    world.settle()
    assert world.ledger.revisions.target().number == 1
