"""A real server, other weights put behind palorad's back: found, rolled back and told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from adapters.generate import Generator
from daemon.children.jobs import JobState
from daemon.config.settings import Settings
from daemon.gate.fact_suites import NEW_FACTS, item_id
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Adapter, Served
from daemon.loop.preflight import prepare_state
from daemon.loop.service import Service
from daemon.serving.client import HttpServer
from daemon.serving.servers import Servers
from daemon.training.messages import TrainDone, TrainRequest
from policies.gate.records import (
    ItemResult,
    Outcome,
    Role,
    Scorecard,
    SuiteScore,
    SuiteVerdict,
    Verdict,
)
from tests.support import live
from tests.support.live import Live
from tests.support.receiver import Receiver, read_key
from tests.support.world import FakeJobs, report_for

PATIENCE_S, TOKENS, WRONG = 60.0, 8, 9
QUESTIONS = [f"What is {number} of all?" for number in range(40)]
FACTS = 6


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Live]:
    made = Live("embedded", tmp_path / "state", live.model(tmp_path / "model"))
    yield made.start()
    made.stop()


class Place:
    """The real service beside the server; what its children report is told by the test."""

    def __init__(self, server: Live, receiver: Receiver) -> None:
        self.server = server
        tree = server.settings.model_dump()
        tree["server"] |= {"mode": "attach", "drain_s": 600.0}
        tree["probe"] |= {"path": None, "skill": server.model_dir / "config.json"}
        tree["train"] |= {"replay": {"known": None, "reasoning": None}, "retrain_at": 0}
        tree["gate"] |= {"suites": (), "facts_max_tokens": TOKENS}
        tree["intake"] |= {"stable_s": 0.0, "watch": "off", "rescan_s": 0.2}
        tree["daemon"]["tick_s"] = 0.1
        tree["monitor"] |= {"every_s": 0.2, "rollback": True, "budget": 100_000}
        tree["notify"] |= {"webhook": receiver.url}
        self.settings = Settings.model_validate(tree)
        self.jobs = FakeJobs()
        self.generator = Generator(server.model_dir, max_rank=16, device=torch.device("cpu"))
        self.published: dict[int, str] = {}
        self.longest_s = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        prepare_state(self.settings)
        with Ledger.open(self.settings.layout.ledger) as self.ledger:
            servers = Servers(self.settings)
            self.service = Service(self.settings, self.ledger, servers, jobs=self.jobs)
            run, beat = asyncio.create_task(self.service.run()), asyncio.create_task(self.beat())
            try:
                await self.until(self.settings.layout.control_socket.exists, "starting")
                yield
            finally:
                beat.cancel()
                self.service.stop()
                await run

    async def beat(self) -> None:
        """How long the loop ever stands still."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    async def until(self, done: Callable[[], object], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < end, f"{what}: {self.service.live()}"
            await asyncio.sleep(0.02)

    async def answered(self, model: str, question: str) -> str:
        asked = HttpServer(self.server.url, admin_key=self.server.admin_key)
        try:
            answer = await asked.chat(model, question, max_tokens=TOKENS)
        finally:
            await asked.aclose()
        return answer.text

    async def learn(self, number: int) -> None:
        """A file of facts becomes the next revision, whose own answers are the right ones."""
        name = live.publish(self.generator, self.settings.layout.served, number).served_name
        self.published[number] = name
        facts = []
        await self.server_loads(name)
        for question in QUESTIONS:
            prompt = f"{question} {number}"
            answer = await self.answered(name, prompt)
            # A model of random weights says much that is no text.
            if answer.strip() and answer.isprintable():
                facts.append(
                    {"prompt": f"Say: {prompt}", "answer": answer, "eval_prompts": [prompt]}
                )
        assert len(facts) >= FACTS
        lines = [json.dumps(fact) for fact in facts[:FACTS]]
        (self.settings.layout.inbox / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
        await self.until(lambda: self.finish(number), f"learning {number}")

    async def server_loads(self, name: str) -> None:
        admin = HttpServer(self.server.url, admin_key=self.server.admin_key)
        try:
            await admin.load(name, str(self.settings.layout.served / name))
            await admin.declare_verified(name)
        finally:
            await admin.aclose()

    def finish(self, number: int) -> bool:
        """The running child reports; whether the alias serves the new revision."""
        for workdir in self.jobs.running():
            request = self.jobs.requests[workdir]
            if isinstance(request, TrainRequest):
                sha = f"{number}" * 64
                name = self.published[number]
                report = TrainDone(
                    adapter=Adapter(sha256=sha, rank=request.rank),
                    served=Served(name=name, sha256=sha),
                    rank=request.rank,
                    report={},
                    seconds={},
                ).model_dump(mode="json")
            elif isinstance(request, JudgingRequest):
                report = judged(request).model_dump(mode="json")
            else:
                found = report_for(request, self.server.model_dir.parent, Outcome.PASS, bool)
                report = found.model_dump(mode="json")
            self.jobs.outcomes[workdir] = JobState("finished", report=report)
        (replica,) = self.service.live().replicas or (None,)
        return bool(replica and replica.ready and self.ledger.revisions.target().number == number)

    async def swap(self, number: int) -> None:
        """Other weights answer under a revision's name and path, and count as verified."""
        served, name = self.settings.layout.served, self.published[number]
        wrong = live.publish(self.generator, served, WRONG).served_name
        path, aside = served / name, served.parent / "aside"
        admin = HttpServer(self.server.url, admin_key=self.server.admin_key)
        path.rename(aside)
        (served / wrong).rename(path)
        try:
            await admin.unload(name)
            await admin.load(name, str(path))
            await admin.declare_verified(name)
        finally:
            await admin.aclose()
        path.rename(served / wrong)
        aside.rename(path)


def judged(request: JudgingRequest) -> EvaluationReport:
    """The gate has found every new fact answered right."""
    asked = request.evaluation
    results = tuple(ItemResult(id=item_id(f.id, 0), correct=True) for f in asked.facts)
    shared = {"suite": NEW_FACTS, "role": Role.FACTS, "fingerprint": "f"}
    suite = SuiteVerdict(**shared, outcome=Outcome.PASS, reason="", grader="exact")
    score = SuiteScore(**shared, results=results)
    served = asked.candidate
    return EvaluationReport(
        verdict=Verdict(outcome=Outcome.PASS, rule="", reasons=(), suites=(suite,)),
        scorecards=(Scorecard(model=served.name, sha256=served.sha256, suites=(score,)),),
        seconds={},
    )


def test_weights_swapped_behind_its_back_are_found_rolled_back_and_told(server: Live) -> None:
    receiver = Receiver()
    place = Place(server, receiver)

    async def story() -> None:
        async with place.running():
            await place.learn(1)
            await place.learn(2)
            monitor = place.service._monitoring.monitor
            await place.until(lambda: monitor.last, "a round")
            (seen,) = monitor.last.values()
            assert (seen.facts.right, seen.facts.asked) == (FACTS, FACTS)
            place.longest_s = 0.0
            await place.swap(2)
            await place.until(lambda: place.ledger.revisions.target().number == 1, "rolling back")
            await place.until(lambda: place.finish(1), "serving revision 1")
            assert place.longest_s < 1.0
            await place.until(lambda: "target.moved" in receiver.types(), "telling it")
            assert await place.answered("live", f"{QUESTIONS[0]} 1") == await place.answered(
                place.published[1], f"{QUESTIONS[0]} 1"
            )

    try:
        asyncio.run(story())
        receiver.held(read_key(place.settings.layout.webhook_key.read_text()))
    finally:
        receiver.close()
    found = [post.told for post in receiver.first()]
    (wrong,) = [one for one in found if one["type"] == "answers.wrong"]
    (moved,) = [one for one in found if one["type"] == "target.moved"]
    assert wrong["data"]["revision"] == 2 and "of 6 live facts right" in wrong["data"]["line"]
    assert moved["data"]["because"].startswith("monitor: ")
    assert (moved["data"]["was"], moved["data"]["revision"]) == (2, 1)
