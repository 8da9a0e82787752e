"""What passed the gate answers a share of the requests first, and goes live if it does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.serving.pointer import Canary
from daemon.views.status import status
from policies.canary import Traffic
from policies.errors import NotFound
from policies.planning import Discard, Promote, StartCanary
from policies.records import BatchState, PlanState
from tests.support.world import World

MINUTES = {"canary": {"minutes": 10, "share": 0.1}}
FAILING = Traffic(requests=64, failed=60)
SOUND = Traffic(requests=900, failed=1, seconds=90.0, squares=9.5)


def passed(world: World, number: int = 1) -> str:
    """The batch of a plan that the gate has passed, and that has become a canary."""
    batch = world.drop(2)
    for _ in range(20):
        action = world.tick()
        if isinstance(action, StartCanary):
            assert action.plan == number
            return batch
        if world.running is not None:
            world.finish()
    raise AssertionError("no canary")


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, MINUTES)
    made.serve()
    return made


def state(world: World, plan: int = 1) -> PlanState:
    return world.ledger.plans.head(plan).state


def wait(world: World, minutes: float) -> None:
    """Looks at the replicas, every minute one."""
    for _ in range(round(minutes)):
        world.serve()
        world.seconds += 60


def test_it_answers_its_share_and_goes_live_when_its_time_is_over(world: World) -> None:
    batch = passed(world)
    served = world.ledger.plans.head(1).served
    assert served is not None
    world.serve()
    assert world.fleet.canary == Canary(model=served.name, revision=1, share=0.1)
    assert world.fleet.kept == (served.name,)
    assert world.ledger.revisions.target().number == 0
    assert world.ledger.batches.state(batch) is BatchState.LEARNING
    world.fleet.asked = {served.name: Traffic(requests=99, seconds=9, squares=1), "base": SOUND}
    wait(world, 9)
    assert world.tick() is None
    wait(world, 2)
    assert world.tick() == Promote(plan=1)
    world.serve()
    assert world.fleet.canary is None
    assert world.fleet.serves == world.ledger.revisions.target()
    assert world.ledger.batches.state(batch) is BatchState.LIVE
    assert world.ledger.events.verify_chain()


def test_one_that_fails_is_withdrawn_at_once_and_its_plan_rejected(world: World) -> None:
    batch = passed(world)
    world.serve()
    served = world.ledger.plans.head(1).served
    assert served is not None
    world.fleet.asked = {served.name: FAILING, "base": SOUND}
    world.told.clear()
    world.serve()
    assert state(world) is PlanState.REJECTED
    assert world.told == [batch]
    because = world.ledger.plans.head(1).because
    assert because.startswith("as a canary: 60 of 64 requests failed")
    assert not world.rollout.settled
    world.serve()
    assert world.fleet.canary is None
    assert world.ledger.revisions.target().number == 0
    with pytest.raises(NotFound):
        world.ledger.revisions.get(1)


def test_one_that_answers_otherwise_than_it_was_published_is_rejected_at_the_end(
    world: World,
) -> None:
    passed(world)
    world.fleet.problem = "http://replica: token 3 is 5, stored is 6"
    wait(world, 11)
    assert state(world) is PlanState.REJECTED
    assert "token 3" in world.ledger.plans.head(1).because


def test_one_that_no_replica_can_serve_does_not_wait_for_ever(world: World) -> None:
    passed(world)
    for _ in range(11):
        world.serve()
        world.fleet.canary = None
        world.seconds += 60
    world.fleet.fault = RuntimeError("not served")  # `ensure` does nothing: none is shown
    world.serve()
    assert state(world) is PlanState.REJECTED
    assert "no replica could serve it" in world.ledger.plans.head(1).because


def test_a_rollback_withdraws_it_and_discards_its_plan(world: World) -> None:
    passed(world)
    wait(world, 11)
    world.tick()
    passed(world, 2)
    world.serve()
    assert world.fleet.canary is not None
    world.ledger.revisions.rollback(0, "wrong", world.now)
    assert world.canary.wanted() is None
    assert not world.rollout.settled
    world.serve()
    assert world.fleet.canary is None
    assert isinstance(world.tick(), Discard)
    assert state(world, 2) is PlanState.CANCELLED


def test_a_retraction_of_what_it_knows_withdraws_it(world: World) -> None:
    passed(world)
    world.serve()
    world.ledger.retractions.retract("b1-0", "a test", world.now)
    world.serve()
    assert world.fleet.canary is None
    assert isinstance(world.tick(), Discard)


def test_what_replaces_a_revision_that_must_go_does_not_wait(world: World) -> None:
    passed(world)
    wait(world, 11)
    assert world.tick() == Promote(plan=1)
    world.ledger.retractions.retract("b1-0", "a test", world.now)
    for _ in range(20):
        action = world.tick()
        assert not isinstance(action, StartCanary)
        if isinstance(action, Promote):
            break
        if world.running is not None:
            world.finish()
    assert world.ledger.plans.head(2).kind.value == "retract"
    assert state(world, 2) is PlanState.LIVE


def test_a_daemon_that_is_killed_goes_on_with_it_and_counts_its_time_anew(world: World) -> None:
    passed(world)
    wait(world, 9)
    canary = world.fleet.canary
    world.crash()
    wait(world, 9)
    assert world.fleet.canary == canary
    assert world.tick() is None
    wait(world, 2)
    assert world.tick() == Promote(plan=1)


def test_killed_between_its_end_and_its_promotion_it_is_promoted_later(world: World) -> None:
    passed(world)
    wait(world, 11)
    world.crash()
    assert world.tick() is None
    wait(world, 11)
    assert world.tick() == Promote(plan=1)


def test_without_the_setting_one_that_is_left_goes_live(world: World, tmp_path: Path) -> None:
    passed(world)
    world.settings = world.settings.model_copy(
        update={"canary": world.settings.canary.model_copy(update={"minutes": 0})}
    )
    world.crash()
    assert world.canary.wanted() is None
    assert world.tick() == Promote(plan=1)


def test_while_paused_it_stays_where_it_is(world: World) -> None:
    passed(world)
    world.ledger.meta.pause(True, "", world.now)
    wait(world, 12)
    assert world.tick() is None
    assert world.fleet.canary is not None
    world.ledger.meta.pause(False, "", world.now)
    assert world.tick() == Promote(plan=1)


def test_status_tells_of_it(world: World) -> None:
    passed(world)
    assert world.canary.line == "revision 1 is brought to the replicas as a canary"
    world.serve()
    served = world.ledger.plans.head(1).served
    assert served is not None
    world.fleet.asked = {
        served.name: Traffic(requests=20, failed=1, seconds=1.9, squares=0.2),
        "base": Traffic(requests=200, failed=10, seconds=19.0, squares=2.0),
    }
    wait(world, 4)
    assert world.canary.line == (
        "revision 1 answers 10.0% of the requests as a canary for 6 more minutes: 20 requests, "
        "1 failed, 100 ms in the mean (live: 200, 10, 100 ms)"
    )
    view = world.canary.view()
    assert view is not None
    assert view.model_dump()["canary"]["requests"] == 20
    assert status(world.ledger, None, world.now).target.number == 0
