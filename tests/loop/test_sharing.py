"""Room on the GPU: the loop never waits, nothing counts as failed, and who sleeps is woken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.loop.coresident import AGAIN_S
from daemon.loop.rollout import Rollout
from daemon.loop.sharing import RETRY_S, WAKE_TRIES, Sharing
from daemon.serving import gpu
from daemon.serving.gpu import GIB, Memory
from policies.gpu_sharing import SharingPhase
from policies.planning import Step
from policies.records import Fact
from tests.loop.test_rollback import Serving
from tests.support.fake_vllm import Replica


class Shared(Serving):
    """The reconciler and two servers on one GPU; `go` passes seconds as the service's ticks do."""

    def crash(self) -> None:
        super().crash()
        self.sharing = Sharing(
            self.ledger,
            self.settings,
            self.rollout._fleet,  # type: ignore[arg-type]  # it is the real one
            self.rollout,
            serving=lambda: True,
            busy=self.reconciler.on_gpu,
            now=lambda: self.now,
            clock=lambda: self.seconds,
            level=1,
        )
        self.reconciler._sharing = self.sharing

    def go(self, work: Callable[[], Awaitable[Any]]) -> Any:
        return asyncio.run(work())  # type: ignore[arg-type]  # it is a coroutine

    async def step(self, seconds: float = 1.0) -> None:
        """What one tick of the service does, and time for what runs in the background."""
        self.seconds += seconds
        await self.reconciler.tick(self.now)
        if self.sharing.away:
            await self.sharing.watch()
        else:
            await self.rollout.serve(self.now)
            self.sharing.look()
        await asyncio.sleep(0.02)

    async def until(self, phase: SharingPhase, steps: int = 20) -> None:
        for _ in range(steps):
            if self.sharing.phase is phase:
                return
            await self.step()
        raise AssertionError(f"{self.sharing.phase}, not {phase}: {self.sharing.waits_for}")

    def trained(self) -> None:
        """The training child has published its revision."""
        from daemon.children.jobs import JobState
        from daemon.training.messages import TrainRequest

        workdir = self.running
        assert workdir is not None
        request = self.jobs.requests[workdir]
        assert isinstance(request, TrainRequest)
        report = self._published(request).model_dump(mode="json")
        self.jobs.outcomes[workdir] = JobState("finished", report=report)

    @property
    def first(self) -> Replica:
        return self.replicas[0]

    def attempts(self) -> tuple[int, int]:
        (head,) = self.ledger.plans.heads()[:1]
        return head.attempts, head.interruptions


def shared(tmp_path: Path, how: str, mode: str = "attach") -> Shared:
    server: dict[str, Any] = {"kind": "vllm", "mode": mode, "gpu_sharing": how}
    return Shared(tmp_path, {"server": server, "probe": {"path": None}})


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Shared]:
    yield shared(tmp_path, "sleep")


async def learnt(one: Shared) -> None:
    """A first revision is live, and the servers are awake."""
    one.drop(1)
    await one.until(SharingPhase.AWAKE)
    for _ in range(40):
        await one.step()
        workdir = one.running
        if workdir is not None and workdir.name.endswith("-train"):
            one.trained()
        elif workdir is not None:
            one.finish()
        if one.ledger.revisions.target().number and one.rollout.settled and not one.sharing.away:
            return
    raise AssertionError(one.sharing.waits_for)


# --- a whole turn -----------------------------------------------------------------------------


def test_servers_sleep_while_a_child_trains_and_are_verified_before_it_is_judged(
    one: Shared,
) -> None:
    async def story() -> None:
        await learnt(one)
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        assert [replica.asleep for replica in one.replicas] == [True, True]
        assert one.running is None or one.running.name.endswith("-train")
        await one.step()
        assert one.running is not None
        assert one.running.name.endswith("-train")
        assert one.sharing.waits_for == ""
        for _ in range(5):
            await one.step(60)
        assert one.first.asleep
        one.trained()
        while one.sharing.away:
            await one.step()
            assert one.running is None or not one.running.name.endswith("-evaluate")
        assert one.rollout.settled
        assert not one.first.asleep
        await one.step()
        assert one.running is not None
        assert one.running.name.endswith("-evaluate")
        one.finish()
        for _ in range(5):
            await one.step()
        assert one.ledger.revisions.target().number == 2
        assert one.routed == 2

    one.go(story)


def test_the_loop_goes_on_while_requests_under_way_are_finished(one: Shared) -> None:
    async def story() -> None:
        await learnt(one)
        one.first.slow_s = 0.4
        user = httpx.AsyncClient(transport=one.first.transport, base_url="http://u")
        body = {"model": "base", "prompt": ["slow"], "max_tokens": 1}
        asked = asyncio.ensure_future(user.post("/v1/completions", json=body))
        await asyncio.sleep(0.05)
        one.drop(1)
        await one.until(SharingPhase.FALLING_ASLEEP)
        for _ in range(5):
            await one.step()
        assert one.sharing.phase is SharingPhase.FALLING_ASLEEP
        assert "requests under way are finished first" in one.sharing.waits_for
        assert one.running is None
        refused = await user.post("/v1/completions", json=body)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await asked).status_code == 200
        await one.until(SharingPhase.ASLEEP)
        await user.aclose()

    one.go(story)


# --- what comes in between --------------------------------------------------------------------


def test_a_rollback_during_training_ends_it_and_is_served_when_the_server_wakes(
    one: Shared,
) -> None:
    async def story() -> None:
        await learnt(one)
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        await one.step()
        one.ledger.revisions.rollback(0, "wrong", one.now)
        assert one.sharing.waits_for.startswith("revision 0 goes live when the server wakes")
        assert one.routed == 1
        asked: list[str] = []
        one.first.heard = asked.append
        await one.until(SharingPhase.AWAKE)
        assert one.routed == 0
        assert one.rollout.settled
        assert one.running is None or one.running.name.startswith("3")
        assert asked.count("/wake_up") == 1

    one.go(story)


def test_a_plan_given_up_while_requests_are_finished_lets_the_server_go_on(one: Shared) -> None:
    async def story() -> None:
        await learnt(one)
        one.first.slow_s = 1.0
        user = httpx.AsyncClient(transport=one.first.transport, base_url="http://u")
        body = {"model": "base", "prompt": ["slow"], "max_tokens": 1}
        asked = asyncio.ensure_future(user.post("/v1/completions", json=body))
        await asyncio.sleep(0.05)
        one.drop(1)
        await one.until(SharingPhase.FALLING_ASLEEP)
        one.ledger.meta.pause(True, "maintenance", one.now)
        one.ledger.revisions.rollback(0, "wrong", one.now)
        for _ in range(6):
            await one.step()
        assert one.sharing.phase is SharingPhase.AWAKE
        assert not asked.done()
        assert one.routed == 0
        assert (await asked).status_code == 200
        await user.aclose()

    one.go(story)


def test_a_failed_training_lets_the_server_answer_until_it_is_tried_again(one: Shared) -> None:
    async def story() -> None:
        await learnt(one)
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        await one.step()
        one.fail()
        await one.until(SharingPhase.AWAKE)
        assert one.rollout.settled
        assert one.attempts() == (1, 0)

    one.go(story)


def test_a_server_restarted_beside_a_child_is_put_to_sleep_again(one: Shared) -> None:
    async def story() -> None:
        await learnt(one)
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        await one.step()
        one.first.start()
        for _ in range(5):
            await one.step(2)
        assert one.first.asleep
        assert one.sharing.phase is SharingPhase.ASLEEP
        assert one.running is not None

    one.go(story)


def test_a_replica_that_does_not_answer_keeps_nobody_from_training(one: Shared) -> None:
    async def story() -> None:
        await learnt(one)
        one.replicas[1].up = False
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        one.replicas[1].up = True
        one.replicas[1].start()
        await one.step()
        for _ in range(5):
            await one.step(2)
        assert one.replicas[1].asleep

    one.go(story)


# --- what cannot be ---------------------------------------------------------------------------


def test_a_server_that_cannot_sleep_is_named_at_the_start_and_keeps_answering(
    one: Shared,
) -> None:
    async def story() -> None:
        one.first.can_sleep = False
        await one.until(SharingPhase.AWAKE)
        await one.step()
        await one.step()
        assert "needs vLLM started with --enable-sleep-mode" in one.sharing.waits_for
        one.drop(1)
        for _ in range(5):
            await one.step()
        assert one.running is None
        assert one.sharing.phase is SharingPhase.AWAKE
        assert one.rollout.settled
        assert one.attempts() == (0, 0)
        one.first.can_sleep = True
        one.seconds += AGAIN_S
        await one.until(SharingPhase.ASLEEP)
        assert one.sharing.waits_for == ""

    one.go(story)


def test_without_an_answer_nothing_is_trained_and_the_reason_is_told(one: Shared) -> None:
    async def story() -> None:
        for replica in one.replicas:
            replica.up = False
        one.drop(1)
        for _ in range(5):
            await one.step()
        assert one.running is None
        assert "waits until the server answers and is verified" in one.sharing.waits_for
        assert one.attempts() == (0, 0)

    one.go(story)


def test_a_wake_up_that_fails_is_tried_again_and_told(one: Shared) -> None:
    async def story() -> None:
        await learnt(one)
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        await one.step()
        one.first.broken["wake"] = "yes"
        one.trained()
        await one.until(SharingPhase.WAKING)
        await one.step()
        assert "cannot be woken after training" in one.sharing.waits_for
        assert "out of memory" in one.sharing.waits_for
        del one.first.broken["wake"]
        one.seconds += RETRY_S
        await one.until(SharingPhase.AWAKE)
        assert one.sharing.waits_for == ""

    one.go(story)


def test_a_managed_server_that_does_not_wake_is_started_again(one: Shared) -> None:
    """It was asked to wake for ever."""
    restarts: list[int] = []

    async def restart() -> bool:
        restarts.append(sum(1 for path in asked if path == "/wake_up"))
        one.first.broken.pop("wake")
        one.first.start()
        return True

    asked: list[str] = []
    one.first.heard = asked.append
    one.sharing._restart = restart

    async def story() -> None:
        await learnt(one)
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        await one.step()
        asked.clear()
        one.first.broken["wake"] = "yes"
        one.trained()
        for _ in range(8):
            await one.step(RETRY_S)
        await one.until(SharingPhase.AWAKE)
        await one.step()
        assert one.rollout.settled

    one.go(story)
    assert restarts == [WAKE_TRIES]


def test_an_attached_server_that_does_not_wake_is_tried_on_and_told(one: Shared) -> None:
    async def nobody() -> bool:
        return False

    one.sharing._restart = nobody

    async def story() -> None:
        await learnt(one)
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        await one.step()
        one.first.broken["wake"] = "yes"
        one.trained()
        for _ in range(8):
            await one.step(RETRY_S)
        assert one.sharing.phase is SharingPhase.WAKING
        assert "start it again" in one.sharing.waits_for
        del one.first.broken["wake"]
        await one.step(RETRY_S)
        await one.until(SharingPhase.AWAKE)

    one.go(story)


# --- starts and ends --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["sleep", "separate", "coresident"])
def test_a_server_found_asleep_is_woken_whatever_the_settings_say_now(
    tmp_path: Path, how: str
) -> None:
    one = shared(tmp_path, how)

    async def story() -> None:
        await one.step()
        await gpu.sleep(one.sharing._fleet.servers[0], 1)
        replicas = one.replicas
        one.crash()
        one.adopt(replicas)
        await one.until(SharingPhase.AWAKE)
        assert one.rollout.settled
        assert not one.first.asleep

    one.adopt = lambda replicas: adopt(one, replicas)  # type: ignore[attr-defined]
    one.go(story)


def adopt(one: Shared, replicas: list[Replica]) -> None:
    """The servers outlive the daemon."""
    one.replicas = replicas
    for server, replica in zip(one.sharing._fleet.servers, replicas, strict=True):
        server._wire._client._transport = replica.transport


def test_a_daemon_killed_in_training_goes_on_without_waking_the_server(one: Shared) -> None:
    async def story() -> None:
        await learnt(one)
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        await one.step()
        replicas = one.replicas
        asked: list[str] = []
        for replica in replicas:
            replica.heard = asked.append
        one.crash()
        adopt(one, replicas)
        for _ in range(4):
            await one.step(0.5)
        assert one.running is not None
        assert one.running.name.endswith("-train")
        assert "/wake_up" not in asked

    one.go(story)


def test_the_end_wakes_and_verifies_an_attached_server(one: Shared) -> None:
    async def story() -> None:
        await learnt(one)
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        await one.step()
        await one.reconciler.stop(1)
        await one.sharing.stop()
        assert not one.first.asleep
        async with httpx.AsyncClient(transport=one.first.transport, base_url="http://u") as user:
            assert (await user.get("/palorad/ready")).json()["revision"] == 1

    one.go(story)


def test_the_end_leaves_a_managed_server_to_be_stopped(tmp_path: Path) -> None:
    one = shared(tmp_path, "sleep", mode="managed")

    async def story() -> None:
        await learnt(one)
        one.drop(1)
        await one.until(SharingPhase.ASLEEP)
        asked: list[str] = []
        one.first.heard = asked.append
        await one.sharing.stop()
        assert "/wake_up" not in asked

    one.go(story)


# --- coresident and separate ------------------------------------------------------------------


def test_beside_the_server_training_waits_for_memory_and_nothing_counts_as_failed(
    tmp_path: Path,
) -> None:
    one = shared(tmp_path, "coresident")
    shapes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shapes |= {"num_attention_heads": 4, "vocab_size": 260}
    (one.settings.model.path / "config.json").write_text(json.dumps(shapes))
    free, read = [GIB], []

    def memory() -> Memory:
        read.append(free[0])
        return Memory(80 * GIB, free[0])

    one.sharing._coresident._read_memory = memory

    async def story() -> None:
        one.drop(1)
        for _ in range(10):
            await one.step()
        assert one.running is None
        assert len(read) == 1
        assert "1.0 of 80.0 GiB are free" in one.sharing.waits_for
        assert one.attempts() == (0, 0)
        free[0] = 40 * GIB
        await one.step(AGAIN_S)
        await one.step()
        assert one.running is not None
        assert one.sharing.waits_for == ""
        assert not one.first.asleep

    one.go(story)


def test_with_a_device_of_its_own_nobody_sleeps(tmp_path: Path) -> None:
    one = shared(tmp_path, "separate")

    async def story() -> None:
        asked: list[str] = []
        one.first.heard = asked.append
        one.drop(1)
        for _ in range(4):
            await one.step()
        assert one.running is not None
        assert not {"/sleep", "/wake_up", "/is_sleeping"} & set(asked)

    one.go(story)


def test_a_plan_asks_the_server_for_paraphrases_before_it_sleeps(one: Shared) -> None:
    """And a plan that comes while it sleeps for another one has it woken first."""
    seen: list[bool] = []

    async def worded(_plan: object) -> bool:
        seen.append(one.first.asleep)
        return True

    async def story() -> None:
        await learnt(one)
        one.reconciler._worded = worded
        one.admit("x", [Fact(id="x-0", prompt="x?", answer="1")])
        await one.until(SharingPhase.ASLEEP)
        await one.step()
        count = len(seen)
        assert not seen[0]
        one.ledger.revisions.rollback(0, "wrong", one.now)
        await one.until(SharingPhase.AWAKE)
        await one.step()
        assert not any(seen[count:])

    one.go(story)


def test_without_anything_to_serve_yet_nobody_has_to_sleep(one: Shared) -> None:
    one.sharing._serving = lambda: False
    assert asyncio.run(one.sharing.room(1, Step.PROBE))
    assert isinstance(one.rollout, Rollout)
