"""A wrong adapter behind palorad's back is found, told, and rolled back where that is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from policies.errors import ServerUnreachable
from policies.monitoring import ReplicaStanding, Round
from policies.notifications import Notification
from tests.support.evaluating import ignorant, right
from tests.support.monitored import ALIAS, Monitored
from tests.support.scripted import unreachable

WRONG, RIGHT = "answers.wrong", "answers.right-again"


@pytest.fixture
def place(tmp_path: Path) -> Monitored:
    return Monitored(tmp_path)


def garbled(prompt: str) -> str:
    """As an adapter of something else answers."""
    return "13 maybe"


def test_an_alias_that_answers_as_the_gate_found_is_no_trouble(place: Monitored) -> None:
    place.rounds(5)
    assert place.monitor.trouble == ()
    (seen,) = place.monitor.last.values()
    assert (seen.facts, seen.reasoning) == (Round(right=10, asked=10), Round(right=10, asked=10))
    assert place.events(WRONG, RIGHT) == []


def test_a_wrong_adapter_is_trouble_after_the_stated_rounds_and_not_before(
    place: Monitored,
) -> None:
    place.rounds(2)
    place.answers(garbled)
    place.rounds(2)
    assert place.monitor.trouble == ()
    place.rounds(1)
    (line,) = place.monitor.trouble
    assert "http://replica-0: the alias answers wrong: 0 of 10 live facts right and 0 of 10" in line
    assert place.events(WRONG, RIGHT) == [(WRONG, "revision:2")]
    place.rounds(5)
    assert place.events(WRONG, RIGHT) == [(WRONG, "revision:2")], "told once"
    assert place.target == 2, "no rollback unless it is asked for"


def test_forgotten_facts_alone_are_found(place: Monitored) -> None:
    place.answers(ignorant)
    place.rounds(3)
    (line,) = place.monitor.trouble
    assert "0 of 10 live facts right and 10 of 10 reasoning items right" in line


def test_it_ends_after_the_stated_good_rounds(place: Monitored) -> None:
    place.answers(garbled)
    place.rounds(3)
    place.answers(right)
    place.rounds(1)
    assert place.monitor.trouble
    place.rounds(1)
    assert place.monitor.trouble == ()
    assert place.events(WRONG, RIGHT) == [(WRONG, "revision:2"), (RIGHT, "revision:2")]


def test_a_wrong_adapter_is_rolled_back_with_its_reason_and_told(tmp_path: Path) -> None:
    place = Monitored(tmp_path, rollback=True)
    place.world.ledger.outbox.tell(frozenset(Notification))
    place.answers(garbled)
    place.rounds(3)
    assert (place.target, place.woken) == (1, 1)
    moved = [said for _, _, _, said in place.world.ledger.events.of_kinds("target")][-1]
    assert moved["because"].startswith("monitor: 0 of 10 live facts right")
    told = [one.type.value for one in place.world.ledger.outbox.waiting(9)]
    assert told == [WRONG, "target.moved"]


def test_it_rolls_back_once_and_leaves_the_rest_to_a_person(tmp_path: Path) -> None:
    place = Monitored(tmp_path, rollback=True)
    place.answers(garbled)
    place.rounds(12)
    assert (place.target, place.woken) == (1, 1)
    assert "no further rollback by itself" in place.monitor.trouble[-1]
    place.monitor = place.started()
    place.rounds(6)
    assert place.target == 1, "nor after a restart"


def test_one_bad_replica_of_two_is_told_and_not_rolled_back(tmp_path: Path) -> None:
    place = Monitored(tmp_path, replicas=2, rollback=True)
    place.answers(garbled, 1)
    place.rounds(6)
    (line,) = place.monitor.trouble
    assert line.startswith("http://replica-1: ")
    assert place.target == 2
    place.answers(garbled, 0)
    place.rounds(3)
    assert place.target == 1


def test_what_is_superseded_or_retracted_is_not_asked(tmp_path: Path) -> None:
    place = Monitored(tmp_path, facts=40)
    for number in range(20):
        place.world.ledger.retractions.retract(f"old{number}", "", place.world.now)
    place.rounds(1)
    asked = {prompt for _, prompt in place.replicas[0].asked}
    assert any(" new " in prompt for prompt in asked)
    assert not any(" old " in prompt for prompt in asked)


def test_a_replica_that_is_away_or_refuses_is_not_taken_for_a_wrong_one(place: Monitored) -> None:
    place.replicas[0].fault, place.replicas[0].alive = unreachable, False
    place.rounds(4)
    place.replicas[0].brains.pop(ALIAS)
    place.rounds(4)
    assert place.monitor.trouble == () and place.monitor.last == {}


def test_nothing_is_asked_while_the_alias_moves_and_such_a_round_counts_for_nothing(
    place: Monitored,
) -> None:
    place.settled = False
    place.rounds(3)
    assert not place.replicas[0].asked
    place.settled = True
    place.answers(garbled)

    def moves(_model: str, _prompt: str, _time: int) -> None:
        place.settled = False

    place.replicas[0].fault = moves
    for _ in range(4):
        place.rounds(1)
        place.settled = True
    assert place.monitor.last == {}


def test_no_more_is_asked_in_a_day_than_the_budget_says(tmp_path: Path) -> None:
    place = Monitored(tmp_path, budget=50)
    place.rounds(5)
    assert place.replicas[0].asked.total() == 40
    place.world.seconds += 86400
    place.rounds(1)
    assert place.replicas[0].asked.total() == 60


def test_the_base_is_not_asked_about_what_it_never_learnt(place: Monitored) -> None:
    place.world.ledger.revisions.rollback(0, "a test", place.world.now)
    place.rounds(2)
    assert not place.replicas[0].asked


def test_a_replica_that_hangs_holds_up_nothing_else(place: Monitored) -> None:
    async def run() -> int:
        hangs = asyncio.Event()

        async def chat(*_: object, **__: object) -> None:
            await hangs.wait()
            raise ServerUnreachable("gone")

        place.replicas[0].complete = place.replicas[0].chat = chat  # type: ignore[method-assign, assignment]  # a server that says this
        step, ticks = asyncio.create_task(place.monitor.step()), 0
        while ticks < 20:
            await asyncio.sleep(0.01)
            ticks += 1
        assert not step.done()
        step.cancel()
        return ticks

    assert asyncio.run(run()) == 20


def test_one_bad_round_is_no_failure_and_one_good_one_no_recovery() -> None:
    standing = ReplicaStanding()
    seen = []
    for short in (True, True, False, True, True, True, False, True, False, False, True):
        standing = standing.after(short=short, fail_after=3, recover_after=2)
        seen.append(standing.failing)
    assert seen == [False] * 5 + [True] * 4 + [False] * 2
