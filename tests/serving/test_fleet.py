"""The promotion protocol: nothing is routed before it is verified, on any replica."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.serving import pointer
from daemon.serving.alias import AdminGateway
from daemon.serving.client import HttpServer
from daemon.serving.common import Common
from daemon.serving.fleet import Ensured, Fleet
from daemon.serving.pointer import Pointer
from daemon.serving.replica_status import NotServed
from policies.errors import ServerRefused
from policies.records import Revision
from tests.support.fake_vllm import ADMIN, Replica, publish

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A served directory, a pointer, some replicas and the fleet over them."""

    def __init__(self, root: Path, replicas: int) -> None:
        self.served = root / "served"
        self.served.mkdir()
        self.pointer = root / "alias.json"
        key = root / "admin.key"
        key.write_text(ADMIN)
        gateway = AdminGateway(self.pointer, key, self.served)
        self.replicas = [Replica(gateway, f"http://replica-{i}") for i in range(replicas)]
        self.clock = 0.0
        self.restarted: list[str] = []
        self.fleet = self.new_fleet()

    def new_fleet(self) -> Fleet:
        """As after a restart of the daemon."""

        async def restart(url: str) -> None:
            self.restarted.append(url)

        servers = [HttpServer(r.url, admin_key=ADMIN, transport=r.transport) for r in self.replicas]
        common = Common(
            alias="live",
            base="base",
            served=self.served,
            drain_s=2.0,
            now=lambda: NOW,
            monotonic=lambda: self.clock,
            nonce=lambda: "n",
            restart=restart,
        )
        return Fleet(servers, self.pointer, common)

    def revision(self, number: int) -> Revision:
        """A published revision; 0 is the base."""
        name = publish(self.served, number) if number else "base"
        return Revision(
            number=number,
            plan_id=None,
            parent=None,
            lineage=(),
            served_name=name,
            sha256=None,
            created_at=NOW,
        )

    def ensure(
        self, target: Revision, previous: Revision | None = None, keep: tuple[str, ...] = ()
    ) -> Ensured:
        return asyncio.run(self.fleet.ensure(target, previous, keep))

    def live(self, replica: int = 0) -> tuple[str, str]:
        """Revision and model that the alias answers from."""

        async def ask() -> tuple[str, str]:
            server = HttpServer("http://user", transport=self.replicas[replica].transport)
            (answer,) = await server.complete("live", ["prompt 0"], max_tokens=4)
            assert answer.model == "live"
            return answer.headers["x-palorad-revision"], answer.headers["x-palorad-model"]

        return asyncio.run(ask())

    @property
    def routed(self) -> Pointer | None:
        return pointer.read(self.pointer)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield World(tmp_path, 2)


def test_before_the_first_promotion_the_alias_answers_from_the_base(world: World) -> None:
    assert world.ensure(world.revision(0)).done
    assert world.live() == ("0", "base")


def test_a_promotion_loads_verifies_and_flips_on_every_replica(world: World) -> None:
    world.ensure(world.revision(0))
    first = world.revision(1)
    result = world.ensure(first)
    assert result.done
    for i, status in enumerate(result.replicas):
        assert status.active == status.target == first.served_name
        assert status.verified_at == NOW
        assert status.reason == ""
        assert world.live(i) == ("1", first.served_name)


def test_nothing_is_done_twice(world: World) -> None:
    first = world.revision(1)
    world.ensure(first)
    again = world.ensure(first)
    assert again.done
    assert again.steps == ()
    assert world.replicas[0].loads == [first.served_name]


@pytest.mark.parametrize("fault", ["base", "nan", "load"])
def test_a_replica_that_fails_keeps_the_alias_where_it_was(world: World, fault: str) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.replicas[1].broken[second.served_name] = fault
    for _ in range(3):
        result = world.ensure(second, first)
        assert not result.done
        assert result.replicas[1].reason
        assert world.live(0) == world.live(1) == ("1", first.served_name)


def test_nan_asks_for_a_restart_once_and_is_not_loaded_again(world: World) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.replicas[0].broken[second.served_name] = "nan"
    world.ensure(second, first)
    world.replicas[0].start()
    world.ensure(second, first)
    world.ensure(second, first)
    assert world.restarted == ["http://replica-0"]
    assert "NaN" in world.fleet.statuses[0].reason
    assert world.replicas[0].loads.count(second.served_name) == 1


def test_bytes_changed_after_publication_are_never_loaded(world: World) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    (world.served / second.served_name / "adapter_config.json").write_text("{}")
    result = world.ensure(second, first)
    assert not result.done
    assert "adapter_config.json has changed" in result.replicas[0].reason
    assert second.served_name not in world.replicas[0].loads
    assert world.live() == ("1", first.served_name)


def test_another_adapter_under_the_name_is_found_out(world: World) -> None:
    first = world.revision(1)
    other = publish(world.served, 9)
    for replica in world.replicas:
        replica.adapters[first.served_name] = str(world.served / other)
    result = world.ensure(first)
    assert not result.done
    assert "is loaded from" in result.replicas[0].reason


def test_a_restarted_server_routes_nothing_until_it_is_verified_again(world: World) -> None:
    first = world.revision(1)
    world.ensure(first)
    world.replicas[0].start()
    with pytest.raises(ServerRefused) as refused:
        world.live(0)
    assert refused.value.status == 503
    statuses = asyncio.run(world.fleet.observe())
    assert statuses[0].active is None
    assert statuses[0].verified_at is None
    assert statuses[1].active == first.served_name
    assert world.ensure(first).done
    assert world.live(0) == ("1", first.served_name)


def test_a_dead_replica_does_not_hold_up_the_others_and_heals(world: World) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.replicas[1].up = False
    result = world.ensure(second, first)
    assert not result.done
    assert not result.replicas[1].healthy
    assert world.live(0) == ("2", second.served_name)
    world.replicas[1].start()
    with pytest.raises(ServerRefused):
        world.live(1)
    assert world.ensure(second, first).done
    assert world.live(1) == ("2", second.served_name)


def test_with_no_replica_up_nothing_flips(world: World) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    for replica in world.replicas:
        replica.up = False
    assert not world.ensure(second, first).done
    assert world.routed is not None
    assert world.routed.revision == 1


def test_a_restarted_daemon_verifies_what_it_finds_without_loading_it(world: World) -> None:
    first = world.revision(1)
    world.ensure(first)
    world.fleet = world.new_fleet()
    result = world.ensure(first)
    assert result.done
    assert result.replicas[0].verified_at == NOW
    assert world.replicas[0].loads == [first.served_name]


def test_a_lost_or_damaged_pointer_file_comes_back(world: World) -> None:
    first = world.revision(1)
    world.ensure(first)
    for damage in ("", "not json", '{"alias": "live"}'):
        world.pointer.write_text(damage)
        with pytest.raises(ServerRefused) as refused:
            world.live()
        assert refused.value.status == 503
        assert world.ensure(first).done
        assert world.live() == ("1", first.served_name)
    world.pointer.unlink()
    assert world.ensure(first).done
    assert world.live() == ("1", first.served_name)


def test_an_evicted_adapter_is_loaded_and_verified_again(world: World) -> None:
    first = world.revision(1)
    world.ensure(first)
    del world.replicas[0].adapters[first.served_name]
    assert world.ensure(first).done
    assert world.live(0) == ("1", first.served_name)
    assert world.replicas[0].loads == [first.served_name] * 2


def test_rollback_flips_back_without_a_load(world: World) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.ensure(second, first)
    assert world.ensure(first, second).done
    assert world.live() == ("1", first.served_name)
    assert world.replicas[0].loads == [first.served_name, second.served_name]


def test_an_old_revision_is_retired_only_after_it_drained(world: World) -> None:
    first, second, third = world.revision(1), world.revision(2), world.revision(3)
    for target, previous in ((first, None), (second, first), (third, second)):
        world.ensure(target, previous)
    world.replicas[0].middleware.state.in_flight[first.served_name] = 1
    world.clock = 10.0
    world.ensure(third, second)
    assert world.replicas[1].unloads == [first.served_name]
    assert world.replicas[0].unloads == []
    world.replicas[0].middleware.state.in_flight[first.served_name] = 0
    world.ensure(third, second)
    world.clock = 11.9
    world.ensure(third, second)
    assert world.replicas[0].unloads == []
    world.clock = 12.0
    world.ensure(third, second)
    assert world.replicas[0].unloads == [first.served_name]
    assert second.served_name in world.replicas[0].adapters


def test_a_candidate_under_evaluation_is_kept(world: World) -> None:
    first = world.revision(1)
    candidate = world.revision(2)
    world.ensure(first)
    asyncio.run(world.fleet.stage(candidate.served_name))
    for world.clock in (5.0, 10.0):
        world.ensure(first, None, keep=(candidate.served_name,))
    assert candidate.served_name in world.replicas[0].adapters
    assert world.live() == ("1", first.served_name)


def test_a_broken_candidate_is_refused_with_the_reason(world: World) -> None:
    candidate = world.revision(1)
    world.replicas[0].broken[candidate.served_name] = "base"
    with pytest.raises(NotServed, match="token 1 is 7"):
        asyncio.run(world.fleet.stage(candidate.served_name))
    with pytest.raises(NotServed):
        asyncio.run(world.fleet.stage(candidate.served_name))
    assert world.replicas[0].loads == [candidate.served_name]


def test_directories_go_only_when_no_replica_lists_them(world: World) -> None:
    first, second = world.revision(1), world.revision(2)
    world.ensure(first)
    world.ensure(second, first)
    names = (first.served_name, second.served_name)
    assert asyncio.run(world.fleet.discard(names)) == ()
    world.replicas[0].adapters.pop(first.served_name)
    assert asyncio.run(world.fleet.discard(names)) == ()
    world.replicas[1].adapters.pop(first.served_name)
    world.replicas[1].up = False
    assert asyncio.run(world.fleet.discard(names)) == ()
    world.replicas[1].up = True
    assert asyncio.run(world.fleet.discard(names)) == (first.served_name,)
    assert [p.name for p in world.served.iterdir()] == [second.served_name]
    assert asyncio.run(world.fleet.discard(("../alias.json", "other"))) == ()


def test_a_server_that_does_not_take_the_admin_key_is_named(world: World) -> None:
    first = world.revision(1)
    server = HttpServer(
        "http://bare", admin_key="wrong-key-here", transport=world.replicas[0].transport
    )
    world.fleet = Fleet([server], world.pointer, Common("live", "base", world.served))
    result = world.ensure(first)
    assert not result.done
    assert "does not take palorad's admin key" in result.replicas[0].reason


def test_the_pointer_is_replaced_and_never_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "alias.json"
    pointer.write(path, Pointer(alias="live", model="base", revision=0))
    before = path.stat().st_ino
    pointer.write(path, Pointer(alias="live", model="m", revision=1))
    assert path.stat().st_ino != before
    assert json.loads(path.read_text()) == {"alias": "live", "model": "m", "revision": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["alias.json"]
