"""A canary answers its share of the alias's requests, wherever it was verified, and no more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.serving import pointer
from daemon.serving.alias import AliasMiddleware
from daemon.serving.client import HttpServer
from daemon.serving.fleet import Ensured
from daemon.serving.pointer import Canary
from policies.canary import Traffic
from policies.records import Revision
from tests.serving.test_alias import NAME, Site
from tests.serving.test_fleet import World
from tests.support.fake_vllm import ADMIN

TRIED = "palora-000004-99999999"
ALWAYS, NEVER = {"x-palorad-canary": "always"}, {"x-palorad-canary": "never"}


class Tried(Site):
    """The middleware over a server that has a canary; `drawn` is what the next requests draw."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.drawn = 0.5
        self.middleware = AliasMiddleware(
            self.inner, self.middleware.gateway, draw=lambda: self.drawn
        )
        self.middleware.state.verified |= {NAME, TRIED}
        self.name_canary(TRIED, 0.2)

    def name_canary(self, model: str, share: float) -> None:
        canary = Canary(model=model, revision=4, share=share)
        pointer.write(
            self.pointer, pointer.Pointer(alias="live", model=NAME, revision=3, canary=canary)
        )

    def revision(self, drawn: float = 0.5, **given: Any) -> str:
        self.drawn = drawn
        return self.complete(**given).headers["x-palorad-revision"]

    def traffic(self) -> dict[str, Any]:
        headers = {"x-palorad-admin-key": "the-admin-key"}
        said: dict[str, Any] = self.request("GET", "/palorad/state", headers=headers).json()
        return {model: (one["requests"], one["failed"]) for model, one in said["traffic"].items()}


@pytest.fixture
def tried(tmp_path: Path) -> Tried:
    return Tried(tmp_path)


def test_it_answers_the_share_that_is_drawn_for_it(tried: Tried) -> None:
    assert [tried.revision(drawn) for drawn in (0.0, 0.19, 0.2, 0.9)] == ["4", "4", "3", "3"]


def test_its_answers_carry_the_alias(tried: Tried) -> None:
    tried.drawn = 0.0
    answer = tried.complete()
    assert tried.asked() == {"model": TRIED}
    assert answer.json()["model"] == "live"
    assert answer.headers["x-palorad-model"] == TRIED


def test_a_header_picks_it_or_keeps_it_away(tried: Tried) -> None:
    assert tried.revision(0.9, headers=ALWAYS) == "4"
    assert tried.revision(0.0, headers=NEVER) == "3"
    assert tried.revision(0.0, headers={"x-palorad-canary": "?"}) == "4"


def test_where_it_is_not_verified_the_live_revision_answers(tried: Tried) -> None:
    tried.middleware.state.verified.discard(TRIED)
    assert tried.revision(0.0) == "3"
    assert tried.revision(headers=ALWAYS) == "3"
    assert "canary" not in tried.request("GET", "/palorad/ready").json()


def test_it_opens_no_server_whose_live_revision_is_not_verified(tried: Tried) -> None:
    tried.middleware.state.verified.discard(NAME)
    assert tried.complete(headers=ALWAYS).status_code == 503


def test_a_load_balancer_is_told_of_it(tried: Tried) -> None:
    said = tried.request("GET", "/palorad/ready").json()
    assert said == {"revision": 3, "model": NAME, "canary": 4}


def test_what_both_answered_is_counted_while_there_is_a_canary(tried: Tried) -> None:
    tried.revision(0.0)
    tried.revision(0.9)
    tried.revision(0.9)
    tried.inner.status = 500
    tried.revision(headers=ALWAYS)
    tried.inner.status = 400  # the client's fault
    tried.revision(0.0)
    tried.inner.status = 200
    tried.revision(headers=NEVER)
    tried.complete(TRIED)  # by its own name
    assert tried.traffic() == {TRIED: (2, 1), NAME: (2, 0)}
    tried.name_canary("palora-000005-99999999", 0.2)
    tried.revision(0.9)
    assert tried.traffic() == {NAME: (1, 0)}


def test_without_one_nothing_is_counted(tried: Tried) -> None:
    tried.point(NAME, 3)
    tried.revision(0.0)
    tried.revision(headers=ALWAYS)
    assert tried.traffic() == {}


# --- on the fleet ---------------------------------------------------------------------------------


class Tries(World):
    """Replicas with a canary; what it is is `wanted`."""

    wanted: Canary | None = None

    def tell(self, target: Revision) -> Ensured:
        ensured = self.fleet.ensure(target, canary=lambda: self.wanted)
        return asyncio.run(ensured)

    def want(self, revision: Revision, share: float = 0.1) -> None:
        self.wanted = Canary(model=revision.served_name, revision=revision.number, share=share)

    def said(self, replica: int, wish: str) -> str:
        async def ask() -> str:
            http = httpx.AsyncClient(
                transport=self.replicas[replica].transport, base_url="http://u"
            )
            async with http:
                body = {"model": "live", "prompt": ["prompt 0"], "max_tokens": 4}
                headers = {"x-palorad-canary": wish}
                answer = await http.post("/v1/completions", json=body, headers=headers)
                return answer.headers["x-palorad-revision"]

        return asyncio.run(ask())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Tries]:
    yield Tries(tmp_path, 3)


def test_it_is_named_once_it_was_verified_and_stands_beside_the_target(world: Tries) -> None:
    one, two = world.revision(1), world.revision(2)
    world.tell(one)
    world.want(two)
    result = world.tell(one)
    assert result.done
    assert world.fleet.canary == world.wanted
    assert [world.said(n, "always") for n in range(3)] == ["2"] * 3
    assert [world.said(n, "never") for n in range(3)] == ["1"] * 3
    assert [status.active for status in result.replicas] == [one.served_name] * 3


def test_one_that_no_replica_can_serve_is_not_named(world: Tries) -> None:
    one, two = world.revision(1), world.revision(2)
    world.tell(one)
    for replica in world.replicas:
        replica.broken[two.served_name] = "base"
    world.want(two)
    assert world.tell(one).done
    assert world.fleet.canary is None


def test_where_it_fails_the_live_revision_answers_in_its_place(world: Tries) -> None:
    one, two = world.revision(1), world.revision(2)
    world.tell(one)
    world.replicas[1].broken[two.served_name] = "load"
    world.want(two)
    assert world.tell(one).done
    assert [world.said(n, "always") for n in range(3)] == ["2", "1", "2"]


def test_it_is_withdrawn_although_no_replica_answers(world: Tries) -> None:
    """The pointer alone says who is asked."""
    one, two = world.revision(1), world.revision(2)
    world.want(two)
    world.tell(one)
    world.wanted = None
    for replica in world.replicas:
        replica.up = False
    world.tell(one)
    for replica in world.replicas:
        replica.up = True
    assert [world.said(n, "always") for n in range(3)] == ["1"] * 3


def test_it_comes_back_on_a_replica_that_was_restarted(world: Tries) -> None:
    one, two = world.revision(1), world.revision(2)
    world.want(two)
    world.tell(one)
    world.replicas[2].start()
    assert world.tell(one).done
    assert world.said(2, "always") == "2"


def test_a_rollback_takes_it_away_with_the_same_flip(world: Tries) -> None:
    one, two, three = world.revision(1), world.revision(2), world.revision(3)
    world.tell(one)
    world.tell(two)
    world.want(three)
    world.tell(two)
    world.wanted = None
    world.tell(one)
    assert world.fleet.canary is None
    assert [world.said(n, "always") for n in range(3)] == ["1"] * 3


def test_it_goes_live_without_being_loaded_again(world: Tries) -> None:
    one, two = world.revision(1), world.revision(2)
    world.want(two)
    world.tell(one)
    world.wanted = None
    assert world.tell(two).done
    assert [len(replica.loads) for replica in world.replicas] == [2] * 3
    assert [world.said(n, "never") for n in range(3)] == ["2"] * 3


def test_what_the_replicas_counted_is_summed(world: Tries) -> None:
    one, two = world.revision(1), world.revision(2)
    world.want(two)
    world.tell(one)
    for number in (0, 1, 1):
        world.said(number, "always")
    world.tell(one)
    seen = world.fleet.traffic(two.served_name)
    assert (seen.requests, seen.failed) == (3, 0)
    assert seen.mean_s > 0
    assert world.fleet.traffic(one.served_name) == Traffic()


def test_one_that_answers_otherwise_by_now_is_found(world: Tries) -> None:
    one, two = world.revision(1), world.revision(2)
    world.want(two)
    world.tell(one)
    assert asyncio.run(world.fleet.unsound(two.served_name)) is None
    world.replicas[1].broken[two.served_name] = "base"
    found = asyncio.run(world.fleet.unsound(two.served_name)) or ""
    assert found.startswith("http://replica-1: ")
    world.replicas[1].up = False  # that says nothing of the revision
    assert asyncio.run(world.fleet.unsound(two.served_name)) is None


def test_palorads_own_questions_are_of_the_live_revision(world: Tries) -> None:
    one, two = world.revision(1), world.revision(2)
    world.want(two, share=0.5)
    world.tell(one)

    async def ask() -> set[str]:
        server = HttpServer("http://r", admin_key=ADMIN, transport=world.replicas[0].transport)
        answers = [await server.complete("live", ["prompt 0"], max_tokens=4) for _ in range(20)]
        return {answer.headers["x-palorad-revision"] for (answer,) in answers}

    assert asyncio.run(ask()) == {"1"}


def test_a_damaged_canary_in_the_pointer_answers_from_nothing(tried: Tried) -> None:
    """Rather than guess, as for any other damage."""
    value = json.loads(tried.pointer.read_text())
    value["canary"] = {"model": TRIED}
    tried.pointer.write_text(json.dumps(value))
    assert tried.complete().status_code == 503
