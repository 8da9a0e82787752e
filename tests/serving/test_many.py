"""Many replicas: what one of them costs or holds up does not grow with their number."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from unittest import mock

import httpx
import pytest

from adapters import store
from daemon.serving.base_record import BaseRecord
from daemon.serving.fleet import Ensured
from daemon.serving.turns import Turns
from tests.serving.test_base_record import Based
from tests.serving.test_fleet import World
from tests.support.fake_vllm import Replica


def test_the_files_of_a_revision_are_hashed_once_for_replicas_that_load_together(
    tmp_path: Path,
) -> None:
    """At a real size each hash reads half a gigabyte."""
    world = World(tmp_path, 12)
    verify = store.verify

    def slowly(directory: Path) -> tuple[str, ...]:
        time.sleep(0.3)
        return verify(directory)

    with mock.patch.object(store, "verify", side_effect=slowly) as hashed:
        assert world.ensure(world.revision(1)).done
    assert hashed.call_count == 1
    assert all(len(replica.loads) == 1 for replica in world.replicas)


def test_files_are_hashed_again_before_a_later_load(tmp_path: Path) -> None:
    world = World(tmp_path, 2)
    first = world.revision(1)
    assert world.ensure(first).done
    world.replicas[1].start()
    (world.served / first.served_name / "adapter_config.json").write_text("{}")
    world.ensure(first)
    assert "has changed" in world.fleet.statuses[1].reason


def test_a_replica_whose_base_hangs_keeps_no_other_from_being_verified(tmp_path: Path) -> None:
    world = Based(tmp_path, 3)
    assert world.ensure(world.revision(0)).done
    world.restart()
    world.wire.how, world.wire.at = "hangs", "The capital of France is"
    world.fleet._replicas.reverse()  # the one that hangs is asked first
    began = time.monotonic()
    result = world.back_to(world.revision(1))
    assert time.monotonic() - began < 5
    assert result.answering
    assert [status.healthy and status.active for status in result.replicas[1:]] == [
        result.replicas[0].target
    ] * 2


def test_no_more_replicas_are_attended_to_at_a_time_than_the_bound(tmp_path: Path) -> None:
    world = World(tmp_path, 9)
    requests, most = 0, 0

    async def counted(replica: Replica, request: httpx.Request) -> httpx.Response:
        nonlocal requests, most
        requests += 1
        most = max(most, requests)
        for _ in range(20):  # turns of the loop: the others come meanwhile
            await asyncio.sleep(0)
        requests -= 1
        return await answer(replica, request)

    answer = Replica.answer
    world.fleet.common.turns = Turns(3, slow_s=60)
    with mock.patch.object(Replica, "answer", counted):
        assert world.ensure(world.revision(1)).done
    assert most == 3


@pytest.mark.parametrize("hanging", [1, 5])
def test_who_takes_long_lets_the_next_begin(hanging: int) -> None:
    async def run() -> float:
        turns, never = Turns(2, slow_s=0.1), asyncio.Event()
        stuck = [asyncio.create_task(turns.take(never.wait)) for _ in range(hanging)]
        await asyncio.sleep(0)
        began = time.monotonic()
        assert await turns.take(lambda: asyncio.sleep(0, True))
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        # Every turn is given back once: two are free, not more.
        ended = [asyncio.create_task(turns.take(asyncio.Event().wait)) for _ in range(2)]
        await asyncio.sleep(0)
        assert turns._free.locked()
        for task in ended:
            task.cancel()
        return time.monotonic() - began

    assert asyncio.run(run()) < 1


def test_a_replica_that_sees_the_pointer_late_is_waited_for(tmp_path: Path) -> None:
    """As on another host, by a shared file system that caches."""
    world = World(tmp_path, 2)
    one, two = world.revision(1), world.revision(2)
    assert world.ensure(one).done
    cached = tmp_path / "cached.json"
    cached.write_bytes(world.pointer.read_bytes())
    world.replicas[1].middleware._pointer.path = cached

    async def promote() -> Ensured:
        promoting = asyncio.create_task(world.fleet.ensure(two, one))
        while world.routed is None or world.routed.revision != 2:  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        cached.write_bytes(world.pointer.read_bytes())
        return await promoting

    result = asyncio.run(promote())
    assert result.done
    assert not any("closed" in step for step in result.steps)
    assert (world.live(0)[0], world.live(1)[0]) == ("2", "2")


def test_the_base_is_still_verified_in_every_process(tmp_path: Path) -> None:
    world = Based(tmp_path, 8)
    assert isinstance(world.fleet.common.base_record, BaseRecord)
    assert world.ensure(world.revision(0)).done
    world.replicas[3].start()
    world.replicas[3].base_token = 8
    world.ensure(world.revision(0))
    assert [world.asked(n) for n in range(8)] == ["0"] * 3 + ["503"] + ["0"] * 4
