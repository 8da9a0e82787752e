"""One broken replica is fenced off; the others go on, and it rejoins when it is mended."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.serving.client import HttpServer, Timeouts
from daemon.serving.fleet import Ensured, Fleet
from policies.errors import ServerRefused, ServerUnreachable
from policies.records import Revision
from tests.serving.test_fleet import World
from tests.support.fake_vllm import ADMIN, Replica, publish

HUNG_S = 30.0


class Broken(httpx.AsyncBaseTransport):
    """The wire to one replica, which fails in a chosen way while `how` says so."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.how = ""
        self.at = ""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        if self.how and (self.at in request.url.path or self.at.encode() in body):
            if self.how == "hangs":
                await asyncio.sleep(HUNG_S)
            if self.how == "500":
                return httpx.Response(500, text="broken", request=request)
            if self.how == "nonsense":
                return httpx.Response(200, json={"data": 3, "choices": "?"}, request=request)
            if self.how == "unread":
                return httpx.Response(200, content=b"\xff" * 100, request=request)
            if self.how == "dies":
                self.replica.up = False
        return await self.replica.answer(request)


class Fleets(World):
    """Two replicas; requests to the second one pass through `wire`."""

    def new_fleet(self) -> Fleet:
        fleet = super().new_fleet()
        self.wire = Broken(self.replicas[-1])
        servers = [
            HttpServer(
                replica.url,
                admin_key=ADMIN,
                transport=self.wire if replica is self.replicas[-1] else replica.transport,
                timeouts=Timeouts(health_s=HUNG_S, request_s=HUNG_S, load_s=HUNG_S),
            )
            for replica in self.replicas
        ]
        return Fleet(servers, self.pointer, fleet.common)

    def back_to(self, target: Revision, limit_s: float = 8.0, **given: Any) -> Ensured:
        """As a rollback: what answers now must go."""

        async def run() -> Ensured:
            async with asyncio.timeout(limit_s):
                return await self.fleet.ensure(target, None, may_stay=lambda _: False, **given)

        return asyncio.run(run())

    def asked(self, replica: int) -> str:
        """The revision that the alias answers from, or the status of its refusal."""
        try:
            return self.live(replica)[0]
        except ServerRefused as refused:
            return str(refused.status)
        except ServerUnreachable:
            return "gone"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleets]:
    yield Fleets(tmp_path, 2)


BREAKS = [
    ("hangs", "/v1/completions"),
    ("hangs", "/palorad"),
    ("hangs", ""),
    ("500", "/v1/completions"),
    ("500", "/v1/models"),
    ("500", "/palorad"),
    ("nonsense", ""),
    ("unread", ""),
    ("dies", "/palorad"),
    ("dies", "/v1/completions"),
]


@pytest.mark.parametrize(("how", "at"), BREAKS)
def test_a_rollback_is_not_held_up_by_a_broken_replica(world: Fleets, how: str, at: str) -> None:
    """It never came, anywhere: the pointer waited for every replica that answered."""
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.ensure(second, first)
    assert (world.asked(0), world.asked(1)) == ("2", "2")
    # Nobody may rely on what the daemon remembers of a verification.
    world.fleet = world.new_fleet()
    world.wire.how, world.wire.at = how, at
    result = world.back_to(first)
    assert world.asked(0) == "1"
    assert world.asked(1) != "2"
    assert result.answering
    assert not result.done or how == "dies"
    assert result.replicas[1].reason
    world.wire.how = ""
    if not world.replicas[1].up:
        world.replicas[1].start()
    world.clock += 100
    assert world.ensure(first).done
    assert (world.asked(0), world.asked(1)) == ("1", "1")


@pytest.mark.parametrize("fault", ["base", "load", "nan"])
def test_a_rollback_goes_without_a_replica_that_cannot_serve_its_goal(
    world: Fleets, fault: str
) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(second)
    world.replicas[1].broken[first.served_name] = fault
    result = world.back_to(first)
    assert world.asked(0) == "1"
    assert world.asked(1) == "503"
    assert result.replicas[1].active is None
    assert result.replicas[1].reason


def test_a_replica_that_answers_wrongly_is_closed_and_comes_back_when_it_is_mended(
    world: Fleets,
) -> None:
    first = world.revision(1)
    world.ensure(first)
    world.fleet = world.new_fleet()
    world.replicas[1].broken[first.served_name] = "base"
    result = world.ensure(first)
    assert (world.asked(0), world.asked(1)) == ("1", "503")
    assert any("closed on http://replica-1" in step for step in result.steps)
    assert "answers 503" in result.replicas[1].reason
    assert world.ensure(first).steps == ()
    del world.replicas[1].broken[first.served_name]
    world.clock += 100
    assert world.ensure(first).done
    assert (world.asked(0), world.asked(1)) == ("1", "1")


def test_a_replica_that_reads_another_pointer_is_closed(world: Fleets, tmp_path: Path) -> None:
    """Its alias went on answering from the revision that was rolled back."""
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.ensure(second, first)
    stale = tmp_path / "stale.json"
    stale.write_bytes(world.pointer.read_bytes())
    world.replicas[1].middleware._pointer.path = stale
    result = world.back_to(first)
    assert (world.asked(0), world.asked(1)) == ("1", "503")
    assert result.answering
    assert not result.done


def test_what_must_go_goes_although_nothing_can_take_its_place(world: Fleets) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(second)
    for replica in world.replicas:
        replica.broken[first.served_name] = "load"
    result = world.back_to(first)
    assert (world.asked(0), world.asked(1)) == ("503", "503")
    assert not result.answering
    for replica in world.replicas:
        replica.broken.clear()
    world.clock += 100
    assert world.ensure(first).done
    assert (world.asked(0), world.asked(1)) == ("1", "1")


def test_after_a_failed_check_what_must_go_is_not_put_back(world: Fleets) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.ensure(second, first)
    heard: list[str] = []

    def broken(path: str) -> None:
        heard.append(path)
        # The alias is asked last, once the goal has been verified under its own name.
        for replica in world.replicas:
            if world.routed is not None and world.routed.revision == 1:
                replica.broken[first.served_name] = "base"

    for replica in world.replicas:
        replica.heard = broken
    world.back_to(first)
    assert heard
    assert (world.asked(0), world.asked(1)) == ("503", "503")


def test_a_promotion_waits_for_a_replica_that_serves_the_former_revision(world: Fleets) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.wire.how, world.wire.at = "500", "/v1/load_lora_adapter"
    assert not world.ensure(second, first).answering
    assert (world.asked(0), world.asked(1)) == ("1", "1")


def test_a_promotion_does_not_wait_for_a_replica_that_is_fenced_off(world: Fleets) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.fleet = world.new_fleet()
    world.replicas[1].broken[first.served_name] = "base"
    world.replicas[1].broken[second.served_name] = "load"
    world.ensure(first)
    assert world.ensure(second, first).answering
    assert (world.asked(0), world.asked(1)) == ("2", "503")


def test_a_hanging_replica_is_waited_for_once(world: Fleets) -> None:
    first = world.revision(1)
    world.ensure(first)
    world.fleet = world.new_fleet()
    world.wire.how, world.wire.at = "hangs", ""

    async def run() -> float:
        loop = asyncio.get_running_loop()
        await world.fleet.ensure(first)
        begun = loop.time()
        await world.fleet.ensure(first)
        return loop.time() - begun

    assert asyncio.run(run()) < 1.5


def test_a_rollback_ends_the_wait_of_a_promotion(world: Fleets) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.wire.how, world.wire.at = "hangs", "/v1/load_lora_adapter"
    target = [second]

    async def run() -> Ensured:
        promotion = asyncio.create_task(
            world.fleet.ensure(second, first, is_target=lambda: target[0] is second)
        )
        await asyncio.sleep(0.3)
        target[0] = first
        async with asyncio.timeout(2):
            await promotion
        return await world.fleet.ensure(first)

    assert asyncio.run(run()).answering
    assert (world.asked(0), world.asked(1)) == ("1", "1")


def test_a_rollback_while_a_lost_pointer_is_restored_is_not_overridden(world: Fleets) -> None:
    """Nothing was flipped to it yet; it must not begin to answer after it was rolled back."""
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.pointer.unlink()
    world.wire.how, world.wire.at = "hangs", "/v1/load_lora_adapter"
    target = [second]

    async def run() -> None:
        restoring = asyncio.create_task(
            world.fleet.ensure(second, first, is_target=lambda: target[0] is second)
        )
        await asyncio.sleep(0.3)
        target[0] = first
        async with asyncio.timeout(2):
            await restoring

    asyncio.run(run())
    assert (world.asked(0), world.asked(1)) == ("503", "503")
    world.wire.how = ""
    assert world.back_to(first).answering
    assert (world.asked(0), world.asked(1)) == ("1", "1")


def test_a_target_that_moves_during_the_last_check_fences_nobody_off(world: Fleets) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(second)

    def moved() -> bool:
        return world.routed is not None and world.routed.revision == 2

    result = world.back_to(first, is_target=moved)
    assert not result.answering
    assert not any("closed" in step for step in result.steps)
    assert (world.asked(0), world.asked(1)) == ("1", "1")


def test_another_daemons_revisions_are_left_alone(world: Fleets, tmp_path: Path) -> None:
    """Two daemons with the same key at one server do not unload each other's adapters."""
    elsewhere = tmp_path / "elsewhere" / "served"
    elsewhere.mkdir(parents=True)
    theirs = publish(elsewhere, 7)
    world.replicas[0].adapters[theirs] = str(elsewhere / theirs)
    first, second, third = (world.revision(number) for number in (1, 2, 3))
    for target, previous in ((first, None), (second, first), (third, second), (third, second)):
        world.clock += 10
        world.ensure(target, previous)
    assert theirs in world.replicas[0].adapters
    assert first.served_name not in world.replicas[0].adapters


# --- bytes ------------------------------------------------------------------------------------


def test_bytes_changed_after_verification_are_not_loaded_by_a_restarted_server(
    world: Fleets,
) -> None:
    """They were loaded and declared verified: the daemon remembered that they had been intact."""
    first = world.revision(1)
    world.ensure(first)
    file = world.served / first.served_name / "adapter_config.json"
    before = file.stat()
    file.write_text(json.dumps({"seed": 2}))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for replica in world.replicas:
        replica.start()
    loads = list(world.replicas[0].loads)
    result = world.ensure(first)
    assert not result.answering
    assert "adapter_config.json has changed" in result.replicas[0].reason
    assert world.replicas[0].loads == loads or not world.replicas[0].adapters
    assert (world.asked(0), world.asked(1)) == ("503", "503")
