"""[gate.judge] and blind suites: what the judge model is asked, and what a blind suite counts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest import mock

from daemon.children.jobs import Progress
from daemon.children.worker import StepContext
from daemon.config.settings import Settings
from daemon.gate import child
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.serving.protocol import Completion
from policies.planning import Step
from tests.config.effects import Effect
from tests.config.effects.judging import SUMS, Server, judged, suite
from tests.config.effects.learning import until, world
from tests.support.evaluating import before, facts, right


class StubDesk(StepContext):
    """A desk without a directory."""

    request = ""

    def __init__(self, request: str) -> None:
        self.request = request

    def progress(self, progress: Progress) -> None:
        return None


class Scripted(Server):
    """The server of the models that are judged."""

    async def aclose(self) -> None:
        return None


class FakeJudge:
    """An endpoint whose model takes every answer for right, and how it was reached."""

    def __init__(self) -> None:
        self.reached: tuple[object, ...] = ()
        self.asked: list[str] = []
        self.busiest = self.under_way = 0

    async def chat(self, model: str, prompt: str, *, max_tokens: int) -> Completion:
        self.asked.append(model)
        self.under_way += 1
        self.busiest = max(self.busiest, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return Completion("YES", model)

    async def healthy(self) -> bool:
        return True

    async def aclose(self) -> None:
        return None


def graded(settings: Settings, root: Path) -> object:
    """How the judge model is reached, as what, how often at a time, and how often in all."""
    made = world(settings, root)
    made.admit("old", list(facts(4, "old")))
    made.settle()
    made.admit("new", list(facts(4)))
    request: JudgingRequest = until(made, Step.EVALUATE)
    server, judge = Scripted(right, before), FakeJudge()
    server.name(request)

    def reach(url: str, *, user_key: str | None, timeouts: Any, **_: object) -> object:
        if url == request.url:
            return server
        judge.reached = (url, user_key, timeouts.request_s)
        return judge

    started = request.model_copy(update={"admin_key_file": None})
    with mock.patch.object(child, "HttpServer", reach):
        report = child.evaluate(StubDesk(started.model_dump_json()))
    assert isinstance(report, EvaluationReport)
    return judge.reached, set(judge.asked), judge.busiest, len(judge.asked)


def key(root: Path) -> Path:
    path = root / "judge.key"
    path.write_text("secret\n")
    return path


JUDGED = {
    **suite(grader="judge"),
    "gate.chunk": 40,
    "gate.judge.url": "http://judge",
    "gate.judge.model": "grader-1",
}


def knows_no_sum(prompt: str) -> str:
    return "no idea" if "+" in prompt else before(prompt)


EFFECTS: dict[str, Effect] = {
    "gate.judge.url": Effect(graded, "https://other/v1", JUDGED),
    "gate.judge.model": Effect(graded, "grader-2", JUDGED),
    "gate.judge.key_file": Effect(graded, key, JUDGED),
    "gate.judge.timeout_s": Effect(graded, 7.0, JUDGED),
    "gate.judge.concurrency": Effect(graded, 2, JUDGED),
    "gate.judge.budget": Effect(graded, 5, JUDGED),
    "gate.blind_suites": Effect(
        judged(lambda j: j.report.verdict.reasons, live=knows_no_sum), "warn", SUMS
    ),
}
