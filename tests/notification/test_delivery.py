"""Whatever the receiver does: each event arrives at least once, signed, in order of its id."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.config.notify import NotifySettings
from daemon.ledger.ledger import Ledger
from daemon.notification import messages
from daemon.notification.delivery import Delivery
from policies.notifications import Notification
from policies.records import PlanState
from tests.support.receiver import Receiver
from tests.support.world import START, World

KEY = b"k" * 32
TIMEOUT_S = 0.3
EVERYTHING = frozenset(Notification)


class Place:
    """A ledger with an outbox, a receiver, and a delivery whose clock steps by hand."""

    def __init__(self, root: Path) -> None:
        self.receiver = Receiver()
        self.settings = NotifySettings(
            webhook=self.receiver.url, timeout_s=TIMEOUT_S, dead_after_s=7200
        )
        self.ledger = Ledger.open(root / "ledger.db")
        self.ledger.outbox.tell(EVERYTHING)
        self.seconds = 0.0
        self.start()

    def start(self) -> None:
        """A daemon's delivery from its start on."""
        self.delivery = Delivery(
            self.ledger,
            self.settings,
            KEY,
            now=lambda: START + timedelta(seconds=self.seconds),
            clock=lambda: self.seconds,
        )

    def happens(self, count: int = 1) -> None:
        for number in range(count):
            self.ledger.troubles.began(f"k{number}-{self.seconds}", "the disk is full", START)

    def steps(self, count: int, seconds: float = 301.0) -> None:
        async def go() -> None:
            for _ in range(count):
                await self.delivery.step()
                self.seconds += seconds
            await self.delivery.aclose()

        asyncio.run(go())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.receiver.close()
    made.ledger.close()


def test_a_receiver_that_fails_in_every_way_gets_each_event_signed_and_in_order(
    place: Place,
) -> None:
    place.happens(6)
    place.receiver.faults = ["500", "hang", "ok", "half", "slow", "redirect", "ok", "nonsense"]
    place.receiver.faults += ["reset", "410", "slow", "slow"]
    place.steps(4)
    place.receiver.close()  # refuses
    place.steps(2)
    place.receiver.open()
    place.steps(10)
    assert place.ledger.outbox.counts() == (0, 0)
    assert len(place.receiver.first()) == 6
    taken = [post.id for post in place.receiver.posts if post.answered == "ok"]
    assert len(taken) == len(set(taken)) == 6
    assert len(place.receiver.posts) > 12
    place.receiver.held(KEY)
    assert place.delivery.trouble == ()


def test_an_answer_that_comes_too_late_brings_the_same_message_again(place: Place) -> None:
    place.happens()
    place.receiver.faults = ["slow"]
    place.steps(2)
    first, second = place.receiver.posts
    assert (first.id, first.content) == (second.id, second.content)
    stamps = [int(post.headers["webhook-timestamp"]) for post in (first, second)]
    assert stamps[1] - stamps[0] == 301, "a receiver sees that a try is new"


def test_a_failure_is_followed_by_pauses_that_grow_and_is_told(place: Place) -> None:
    place.happens(2)
    place.receiver.faults = ["500"] * 9
    place.steps(60, seconds=1.0)
    assert len(place.receiver.posts) == 6, "after 1, 3, 7, 15, 31 s"
    (line,) = place.delivery.trouble
    assert "answers 500; 2 notifications wait, tried again in" in line
    assert "hush" not in line and "127.0.0.1" in line


def test_what_is_not_taken_for_the_stated_time_is_kept_and_sent_when_asked(place: Place) -> None:
    place.happens(2)
    place.receiver.faults = ["500"] * 40
    place.steps(23)
    assert place.ledger.outbox.counts() == (2, 0), "not yet two hours"
    place.steps(4)
    assert place.ledger.outbox.counts() == (0, 2)
    assert [one.error for one in place.ledger.outbox.dead(9)] == ["answers 500", ""]
    (line,) = place.delivery.trouble
    assert "2 notifications were given up after 2 h; `palorad notify retry`" in line
    place.receiver.faults = []
    place.happens()
    place.steps(2)
    assert place.ledger.outbox.counts() == (0, 2), "a later one is told meanwhile"
    assert place.ledger.outbox.retry() == 2
    place.steps(2)
    assert place.ledger.outbox.counts() == (0, 0)
    assert len(place.receiver.first()) == 3


def test_a_restart_takes_nothing_from_the_time_that_was_waited(place: Place) -> None:
    place.happens()
    place.receiver.faults = ["500"] * 99
    for _ in range(5):
        place.steps(5)
        place.start()
    assert place.ledger.outbox.counts() == (1, 0)
    place.steps(6)
    assert place.ledger.outbox.counts() == (0, 1)


def test_discarded_ones_are_never_sent(place: Place) -> None:
    place.happens()
    assert place.ledger.outbox.discard() == 0, "only what was given up"
    seq = place.ledger.outbox.waiting(1)[0].event.seq
    place.ledger.outbox.undelivered(seq, "answers 500", 7200.0, 7200.0)
    assert place.ledger.outbox.discard() == 1
    place.steps(2)
    assert place.receiver.posts == []


# --- what is told ----------------------------------------------------------------------------


def told(world: World) -> list[tuple[str, dict[str, object]]]:
    """Type and data of what waits in the outbox, which is then empty."""
    waiting = world.ledger.outbox.waiting(99)
    for one in waiting:
        world.ledger.outbox.delivered(one.event.seq)
    found = (json.loads(messages.body(world.ledger, one)) for one in waiting)
    return [(one["type"], one["data"]) for one in found]


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.ledger.outbox.tell(EVERYTHING)
    return made


def test_a_batch_s_way_is_told_with_plan_file_and_revision(world: World) -> None:
    batch = world.drop(2)
    world.settle()
    ((kind, data),) = told(world)
    assert kind == "plan.live"
    assert data["batches"] == [{"id": batch, "name": "b1"}]
    assert (data["plan"], data["revision"], data["facts"]) == (1, 1, 2)


def test_verdicts_rollbacks_and_retractions_are_told(world: World) -> None:
    from policies.gate.records import Outcome

    world.drop(1)
    world.settle()
    world.drop(1)
    world.settle(Outcome.FAIL)
    world.drop(1)
    world.settle(Outcome.INCONCLUSIVE)
    world.ledger.revisions.rollback(0, "wrong", world.now)
    world.ledger.retractions.retract("b1-0", "asked to", world.now)
    found = told(world)
    kinds = [kind for kind, _ in found]
    assert kinds == [
        *("plan.live", "plan.rejected", "plan.inconclusive", "target.moved", "fact.retracted"),
    ]
    moved = found[3][1]
    assert (moved["revision"], moved["was"], moved["because"]) == (0, 1, "wrong")
    assert "b1 0?" not in json.dumps(found), "no fact's text leaves the host"


def test_what_is_tried_again_is_no_rejection(world: World) -> None:
    from policies.gate.records import Outcome

    world.drop(1)
    world.drop(1)
    for _ in range(40):
        world.tick(60)
        if world.running is not None:
            head = world.ledger.plans.open_plan()
            batches = () if head is None else world.ledger.plans.batches(head.id)
            world.finish(Outcome.FAIL if len(batches) > 1 else Outcome.PASS)
    assert [kind for kind, _ in told(world)] == ["plan.live", "plan.live"]
    states = [head.state for head in world.ledger.plans.heads()]
    assert PlanState.REJECTED in states


def test_facts_that_are_not_learnt_after_all_tries_are_told_once(world: World) -> None:
    world.drop(2)
    for _ in range(60):
        world.tick(60)
        if world.running is not None:
            world.finish(missed=lambda fact: fact.id == "b1-1")
    found = told(world)
    assert [kind for kind, _ in found].count("facts.not-learnt") == 1
    assert found[-1][0] == "facts.not-learnt" and found[-1][1]["not_learnt"] == 1


def test_nothing_is_put_into_an_outbox_that_nobody_empties(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.drop(2)
    world.settle()
    assert world.ledger.outbox.counts() == (0, 0)
    world.ledger.outbox.tell({Notification.ROLLED_BACK})
    world.ledger.revisions.rollback(0, "", world.now)
    world.ledger.revisions.rollback(1, "", world.now)
    world.drop(1)
    world.settle()
    assert {kind for kind, _ in told(world)} == {"target.moved"}


# --- signatures ------------------------------------------------------------------------------


def test_a_signature_is_that_of_the_standard() -> None:
    """The example of Standard Webhooks' reference libraries."""
    key = messages.key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = messages.signature(
        key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}'
    )
    assert signed == "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_key_is_new_each_time_and_any_text_is_one() -> None:
    one, other = messages.fresh_key(), messages.fresh_key()
    assert one != other
    assert messages.key_of(one) == base64.b64decode(one.removeprefix("whsec_"))
    assert messages.key_of("whsec_not base64!") == b"whsec_not base64!"


def test_ids_sort_in_the_order_of_what_they_tell(place: Place) -> None:
    place.happens(12)
    ids = [messages.message_id(one.event) for one in place.ledger.outbox.waiting(99)]
    assert ids == sorted(ids) and len(set(ids)) == 12
