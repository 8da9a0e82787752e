"""One GPU for both, by the real vLLM: it sleeps while the daemon trains, wakes and is verified.

On vLLM's CPU build at level 0, which pauses the scheduler and gives no memory back; at level 1 with
a CUDA device, where the weights leave the GPU (marked `gpu` too).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
import torch

from adapters.generate import Generator
from daemon.children.jobs import JobState
from daemon.config.settings import Settings
from daemon.gate.messages import JudgingRequest
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Adapter, Served
from daemon.loop.preflight import prepare_state
from daemon.loop.service import Service
from daemon.serving import gpu, identity, server_command
from daemon.serving.servers import Servers
from daemon.training.messages import TrainDone, TrainRequest
from policies.gate.records import Outcome
from tests.support import live
from tests.support.live import PROMPTS, Live
from tests.support.world import FakeJobs, report_for

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    root = tmp_path_factory.mktemp("sleep")
    made = Live("vllm", root / "state", live.model(root / "model"), gpu_sharing="sleep")
    yield made.start()
    made.stop()


class Shared:
    """The daemon's real service beside the server; what its children do is told by the test."""

    def __init__(self, server: Live) -> None:
        self.server = server
        tree = server.settings.model_dump()
        tree["server"]["mode"] = "attach"
        tree["probe"] |= {"path": None, "skill": server.model_dir / "config.json"}
        tree["train"]["replay"] |= {"known": None, "reasoning": None}
        tree["gate"]["suites"] = ()
        tree["intake"] |= {"stable_s": 0.0, "watch": "off", "rescan_s": 0.2}
        tree["daemon"]["tick_s"] = 0.1
        self.settings = Settings.model_validate(tree)
        self.jobs = FakeJobs()
        self.generator = Generator(server.model_dir, max_rank=16, device=torch.device("cpu"))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[httpx.AsyncClient]:
        """The daemon runs; a user's client."""
        prepare_state(self.settings)
        with Ledger.open(self.settings.layout.ledger) as self.ledger:
            self.service = Service(
                self.settings, self.ledger, Servers(self.settings), jobs=self.jobs
            )
            run = asyncio.create_task(self.service.run())
            try:
                await self.until(self.settings.layout.control_socket.exists, "starting")
                async with httpx.AsyncClient(base_url=self.server.url, timeout=120) as user:
                    yield user
            finally:
                self.service.stop()
                await run

    async def until(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < end, f"{what}: {self.service.live().trouble}"
            await asyncio.sleep(0.02)

    def at(self, step: str) -> bool:
        """Whether the child of this step runs."""
        return any(workdir.name.endswith(f"-{step}") for workdir in self.jobs.running())

    def drop(self, number: int) -> None:
        line = f'{{"prompt": "What is {number}?", "answer": "It is {number}."}}\n'
        (self.settings.layout.inbox / f"{number}.jsonl").write_text(line)

    def finish(self) -> None:
        """The running child reports; one that trains has published a real adapter."""
        (workdir,) = self.jobs.running()
        request = self.jobs.requests[workdir]
        report = (
            self.published(request)
            if isinstance(request, TrainRequest)
            else report_for(request, self.server.model_dir.parent, Outcome.PASS, lambda _: False)
        )
        self.jobs.outcomes[workdir] = JobState("finished", report=report.model_dump(mode="json"))

    def published(self, request: TrainRequest) -> TrainDone:
        served = self.settings.layout.served
        name = live.publish(self.generator, served, request.number).served_name
        sha = name.rpartition("-")[2] * 8
        return TrainDone(
            adapter=Adapter(sha256=sha, rank=request.rank),
            served=Served(name=name, sha256=sha),
            rank=request.rank,
            report={},
            seconds={},
        )

    async def sleeping(self) -> bool:
        """What vLLM itself says."""
        key = {"x-palorad-admin-key": self.server.admin_key}
        async with httpx.AsyncClient(base_url=self.server.url, headers=key) as admin:
            return bool((await admin.get("/is_sleeping")).json()["is_sleeping"])


async def ask(user: httpx.AsyncClient, tokens: int = 4) -> httpx.Response:
    body = {
        "model": "live",
        "prompt": PROMPTS[0],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    return await user.post("/v1/completions", json=body)


class Users:
    """Three who ask without a pause: each gets a whole answer, or is sent away for a moment."""

    def __init__(self, user: httpx.AsyncClient) -> None:
        self.user = user
        self.whole: set[tuple[str, str]] = set()
        self.sent_away = 0
        self.stopping = False

    async def one(self) -> None:
        while not self.stopping:
            answer = await ask(self.user, 200)
            if answer.status_code == 200:
                text = answer.json()["choices"][0]["text"]
                self.whole.add((answer.headers["x-palorad-revision"], text))
            else:
                assert answer.status_code == 503
                assert int(answer.headers["retry-after"]) >= 1
                self.sent_away += 1
                await asyncio.sleep(0.05)


async def turn(one: Shared, user: httpx.AsyncClient, number: int) -> None:
    """One batch from its file to its live revision; its child trains while the server sleeps."""
    before = await ask(user, 200)
    assert before.headers["x-palorad-revision"] == str(number - 1)
    users = Users(user)
    asking = [asyncio.create_task(users.one()) for _ in range(3)]
    await asyncio.sleep(0.1)
    one.drop(number)
    await one.until(lambda: bool(one.jobs.running()), "sleeping")
    assert one.at("probe" if number == 1 else "train")
    if number == 1:
        one.finish()
        await one.until(lambda: one.at("train"), "training")
    assert await one.sleeping()
    for refused in (await ask(user), await user.get("/palorad/ready")):
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
    (replica,) = one.service.live().replicas
    assert not replica.ready
    one.finish()
    await one.until(lambda: one.at("evaluate"), "waking")
    assert not await one.sleeping()
    again = await ask(user, 200)
    assert again.headers["x-palorad-revision"] == str(number - 1)
    assert again.json()["choices"][0]["text"] == before.json()["choices"][0]["text"]
    users.stopping = True
    await asyncio.gather(*asking)
    assert users.whole == {(str(number - 1), before.json()["choices"][0]["text"])}
    assert users.sent_away
    (workdir,) = one.jobs.running()
    assert isinstance(one.jobs.requests[workdir], JudgingRequest)
    one.finish()
    await one.until(lambda: one.service.live().replicas[0].ready and promoted(one, number), "live")


def promoted(one: Shared, number: int) -> bool:
    return one.ledger.revisions.target().number == number


async def whole(server: Live) -> None:
    one = Shared(server)
    async with one.running() as user:
        await one.until(lambda: one.service.live().replicas[0].ready, "serving")
        for number in (1, 2):
            await turn(one, user, number)
        assert one.service.live().trouble == ()
        target = one.ledger.revisions.target()
        known = identity.read(one.settings.layout.served / target.served_name)
        async with asyncio.timeout(60):
            client = one.service._servers.fleet.servers[0]
            answers = await client.complete("live", PROMPTS, max_tokens=8, ignore_eos=True)
        assert {a.headers["x-palorad-revision"] for a in answers} == {"2"}
        assert identity.mismatch(known, answers) is None
        # Ended in the middle of training, the daemon leaves the server awake and verified.
        one.drop(3)
        await one.until(lambda: one.at("train"), "training")
        assert await one.sleeping()
    assert not await one.sleeping()
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as user:
        assert (await ask(user)).headers["x-palorad-revision"] == "2"


@pytest.mark.skipif(server_command.has_gpu(), reason="with a GPU the server sleeps at level 1")
def test_at_level_0_vllm_pauses_while_the_daemon_trains(server: Live) -> None:
    assert gpu.sleep_level() == 0
    asyncio.run(whole(server))


@pytest.mark.gpu
@pytest.mark.skipif(not server_command.has_gpu(), reason="no CUDA device")
def test_at_level_1_vllm_gives_its_memory_back_while_the_daemon_trains(server: Live) -> None:
    assert gpu.sleep_level() == 1
    awake = gpu.read_memory(os.environ).free
    server.do(lambda client: gpu.sleep(client, 1))
    asleep = gpu.read_memory(os.environ).free
    server.do(gpu.wake)
    assert asleep > awake + gpu.GIB
    asyncio.run(whole(server))
