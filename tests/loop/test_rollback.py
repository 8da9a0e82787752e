"""A rollback wins over a promotion that is under way, and is answered from at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from daemon.base.control import ask
from daemon.children.jobs import JobState
from daemon.ledger.records import Adapter, Served
from daemon.serving import pointer, replicas
from daemon.serving.alias import AdminGateway
from daemon.serving.client import HttpServer
from daemon.training.messages import TrainDone, TrainRequest
from policies.errors import ServerUnreachable
from policies.records import Revision
from tests.support.crashing import Site
from tests.support.fake_vllm import ADMIN, Replica, publish
from tests.support.world import World


class Serving(World):
    """A reconciler over a real ledger, the real fleet and two stand-ins for servers."""

    def crash(self) -> None:
        super().crash()
        layout = self.settings.layout
        layout.served.mkdir(parents=True, exist_ok=True)
        layout.admin_key.write_text(ADMIN)
        gateway = AdminGateway(layout.alias, layout.admin_key, layout.served)
        self.replicas = [Replica(gateway, f"http://replica-{n}") for n in range(2)]
        servers = [HttpServer(r.url, admin_key=ADMIN, transport=r.transport) for r in self.replicas]
        self.rollout._fleet = replicas.fleet(self.settings, servers)
        self.canary._replicas = self.rollout._fleet

    def learn(self) -> Revision:
        """One more batch that passes the gate: its revision is the target, and not served yet."""
        before = self.ledger.revisions.target().number
        self.drop(1)
        for _ in range(20):
            self.tick(60)
            if self.ledger.revisions.target().number > before:
                return self.ledger.revisions.target()
            if self.running is None:
                continue
            request = self.jobs.requests[self.running]
            if isinstance(request, TrainRequest):
                self.jobs.outcomes[self.running] = JobState(
                    "finished", report=self._published(request).model_dump(mode="json")
                )
            else:
                self.finish()
        raise AssertionError("the batch did not become a revision")

    def _published(self, request: TrainRequest) -> TrainDone:
        served = self.settings.layout.served
        name = publish(served, request.number)
        sha = name.rpartition("-")[2] * 8
        return TrainDone(
            adapter=Adapter(sha256=sha, rank=request.rank),
            served=Served(name=name, sha256=sha),
            rank=request.rank,
            report={},
            seconds={},
        )

    @property
    def routed(self) -> int:
        """The revision that the alias stands for."""
        found = pointer.read(self.settings.layout.alias)
        assert found is not None
        return found.revision


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    return Serving(tmp_path)


def at(path: str, act: Callable[[], None]) -> Callable[[str], None]:
    """Act once, when the server is asked for `path`."""
    left = [act]

    def heard(asked: str) -> None:
        if asked == path and left:
            left.pop()()

    return heard


@pytest.mark.parametrize("when", ["/v1/load_lora_adapter", "/palorad/verified"])
def test_a_rollback_during_a_promotion_keeps_the_alias_where_it_is(
    serving: Serving, when: str
) -> None:
    first = serving.learn()
    assert serving.serve().done
    second = serving.learn()
    serving.replicas[1].heard = at(  # the first has loaded the candidate to have it evaluated
        when, lambda: serving.ledger.revisions.rollback(first.number, "wrong", serving.now)
    )
    serving.serve()
    assert serving.ledger.revisions.target() == first
    assert serving.routed == first.number
    assert second.served_name in serving.replicas[1].adapters
    serving.serve()
    assert serving.routed == first.number
    assert serving.rollout.settled


def test_a_rollback_while_the_fleet_is_busy_is_what_is_served_next(serving: Serving) -> None:
    """The target is read when the fleet is free, not when it was asked for."""
    first = serving.learn()
    serving.serve()
    second = serving.learn()

    async def run() -> None:
        async with serving.rollout._one_at_a_time:
            promoting = asyncio.ensure_future(serving.rollout.serve(serving.now))
            await asyncio.sleep(0)
            serving.ledger.revisions.rollback(first.number, "wrong", serving.now)
        await promoting

    asyncio.run(run())
    assert second.served_name not in serving.replicas[1].adapters
    assert serving.routed == first.number


def test_a_rollback_does_not_wait_for_a_candidate_on_a_hanging_replica(serving: Serving) -> None:
    """Staging held the fleet until its time was up, and with it the rollback."""
    first = serving.learn()
    serving.serve()
    serving.learn()
    serving.serve()
    candidate = publish(serving.settings.layout.served, 9)
    answer = serving.replicas[0].answer

    async def hangs(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/load_lora_adapter":
            await asyncio.sleep(30)
        return await answer(request)

    serving.replicas[0].answer = hangs  # type: ignore[method-assign]

    async def run() -> None:
        staging = asyncio.create_task(serving.rollout.stage(candidate))
        await asyncio.sleep(0.2)
        serving.ledger.revisions.rollback(first.number, "wrong", serving.now)
        async with asyncio.timeout(5):
            await serving.rollout.serve(serving.now)
        with pytest.raises(ServerUnreachable, match="the target has moved"):
            await staging

    asyncio.run(run())
    assert serving.routed == first.number


def test_a_rollback_is_not_held_up_by_a_replica_that_cannot_serve_it(serving: Serving) -> None:
    """What was rolled back is answered nowhere; the replica rejoins when it is mended."""
    first = serving.learn()
    serving.serve()
    serving.learn()
    serving.serve()
    serving.replicas[1].start()
    serving.replicas[1].broken[first.served_name] = "load"
    serving.ledger.revisions.rollback(first.number, "wrong", serving.now)
    ensured = serving.serve()
    assert serving.routed == first.number
    assert serving.rollout.settled
    assert not ensured.done
    active = [status.active for status in ensured.replicas]
    assert active == [first.served_name, None]
    serving.replicas[1].start()
    serving.replicas[1].broken.clear()
    assert serving.serve().done


def test_settled_is_lost_with_the_command_that_changes_the_target(serving: Serving) -> None:
    first = serving.learn()
    assert not serving.rollout.settled
    serving.serve()
    serving.learn()
    assert not serving.rollout.settled
    serving.serve()
    assert serving.rollout.settled
    serving.ledger.revisions.rollback(first.number, "wrong", serving.now)
    assert not serving.rollout.settled
    serving.serve()
    assert serving.rollout.settled
    assert serving.routed == first.number


def test_a_replica_that_does_not_answer_is_not_waited_for(serving: Serving) -> None:
    serving.learn()
    serving.replicas[1].up = False
    assert not serving.serve().done
    assert serving.rollout.settled
    serving.replicas[0].up = False
    serving.serve()
    assert not serving.rollout.settled
    serving.replicas[0].up = serving.replicas[1].up = True
    assert serving.serve().done
    assert serving.rollout.settled


# --- through the daemon ------------------------------------------------------------------------


def test_a_rollback_is_answered_from_long_before_the_next_tick(tmp_path: Path) -> None:
    one = Site(tmp_path / "site")
    try:
        one.start()
        one.drop("a.jsonl", ["one"])
        one.drop("b.jsonl", ["two"])
        one.stop()
        daemon = one.settings.daemon.model_copy(update={"tick_s": 5.0})
        one.settings = one.settings.model_copy(update={"daemon": daemon})
        one.start()
        one.until(lambda: _ready(one), "being ready")
        for command, revision in [("rollback", 1), ("forward", 2)] * 3:
            begun = time.monotonic()
            ask(one.layout.control_socket, command, to=revision)
            one.until(lambda r=revision: _answered_by(one) == r, "answering")  # type: ignore[misc]
            assert time.monotonic() - begun < 1.0, (command, revision)
    finally:
        one.close()


def _ready(one: Site) -> bool:
    if not one.layout.control_socket.exists():
        return False
    (replica,) = ask(one.layout.control_socket, "status")["replicas"]
    return bool(replica["ready"])


def _answered_by(one: Site) -> int:
    """The revision that the stable name answers from."""
    body = {"model": one.settings.model.alias, "prompt": ["prompt 0"], "max_tokens": 4}
    url = one.settings.server.urls[0]
    response = httpx.post(f"{url}/v1/completions", json=body, trust_env=False)
    return int(response.headers["x-palorad-revision"])
