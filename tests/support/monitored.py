"""A world whose revisions the real gate has judged, and an alias that answers as a test says."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from daemon.children.jobs import JobState
from daemon.gate.answer_store import AnswerStore
from daemon.gate.evaluation import evaluate_candidate
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.monitoring.monitor import Monitor
from policies.gate.records import Outcome, Role
from policies.planning import Step
from policies.records import PlanState
from tests.config.effects.learning import until
from tests.support.evaluating import facts, ignorant, right, sums
from tests.support.scripted import Brain, ScriptedServer
from tests.support.world import World

ALIAS = "palora-live"


class Monitored:
    """Two revisions are live, one after the other; `replicas` answer the alias."""

    def __init__(self, root: Path, replicas: int = 1, **monitor: Any) -> None:
        root.mkdir(parents=True, exist_ok=True)
        suite = root / "sums.jsonl"
        suite.write_text("".join(json.dumps(row) + "\n" for row in sums(300)))
        source = {"name": "sums", "role": Role.REASONING, "path": suite, "grader": "number"}
        gate = {"suites": (source,), "facts_grader": "contains"}
        monitor = {"every_s": 60, **monitor}
        self.world = World(root, {"gate": gate, "monitor": monitor, "train": {"max_facts": 40}})
        self.root = root
        self.learn("old")
        self.learn("new")
        self.replicas = [ScriptedServer({ALIAS: right}) for _ in range(replicas)]
        for number, replica in enumerate(self.replicas):
            replica.url = f"http://replica-{number}"
        self.settled, self.woken = True, 0
        self.monitor = self.started()

    def started(self) -> Monitor:
        """The monitor of a daemon that starts now."""
        return Monitor(
            self.world.ledger,
            self.world.settings,
            self,
            settled=lambda: self.settled,
            wake=self._wake,
            rng=random.Random(7),
            now=lambda: self.world.now,
            clock=lambda: self.world.seconds,
        )

    @property
    def servers(self) -> list[ScriptedServer]:
        return self.replicas

    def _wake(self) -> None:
        self.woken += 1

    def learn(self, kind: str) -> None:
        """A batch of 20 facts, judged by the real gate; whatever it says, it goes live."""
        self.world.admit(kind, list(facts(20, kind)))
        request: JudgingRequest = until(self.world, Step.EVALUATE)
        asked = request.evaluation
        brains: dict[str, Brain] = {asked.base.name: ignorant, asked.candidate.name: right}
        if asked.live is not None:
            brains[asked.live.name] = right

        async def run() -> EvaluationReport:
            return await evaluate_candidate(
                asked,
                ScriptedServer(brains),
                AnswerStore(self.root / "answers"),
                lambda _: None,
                encode=lambda text: tuple(text.encode()),
            )

        report = asyncio.run(run())
        passed = report.verdict.model_copy(update={"outcome": Outcome.PASS})
        whole = report.model_copy(update={"verdict": passed})
        assert self.world.running is not None
        self.world.jobs.outcomes[self.world.running] = JobState(
            "finished", report=whole.model_dump(mode="json")
        )
        self.world.settle()
        states = [head.state for head in self.world.ledger.plans.heads()]
        assert states[0] is PlanState.LIVE

    def answers(self, brain: Brain, *replicas: int) -> None:
        """From now on these replicas answer the alias so, or all of them."""
        for number in replicas or range(len(self.replicas)):
            self.replicas[number].brains[ALIAS] = brain

    def rounds(self, count: int) -> None:
        async def go() -> None:
            for _ in range(count):
                await self.monitor.step()
                self.world.seconds += 60

        asyncio.run(go())

    @property
    def target(self) -> int:
        return self.world.ledger.revisions.target().number

    def events(self, *kinds: str) -> list[tuple[str, str]]:
        return [(kind, about) for _, kind, about, _ in self.world.ledger.events.of_kinds(*kinds)]
