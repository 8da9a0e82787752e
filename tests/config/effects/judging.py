"""[gate] and what evaluating takes of [server]: a candidate judged on a scripted server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from daemon.config.settings import Settings
from daemon.gate.answer_store import AnswerStore
from daemon.gate.evaluation import evaluate_candidate
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.serving.protocol import Completion
from policies.planning import Step
from tests.config.effects import Effect, Observe, outcome
from tests.config.effects.learning import until, world
from tests.support.evaluating import before, facts, right, sums
from tests.support.scripted import Brain, ScriptedServer

SUITE = "gate.suites[]"


class Server(ScriptedServer):
    """Remembers every question with its longest answer, in their order."""

    def __init__(self, candidate: Brain, live: Brain) -> None:
        super().__init__({})
        self.candidate, self.live = candidate, live
        self.said: list[tuple[str, str, int]] = []

    def name(self, request: JudgingRequest) -> None:
        asked = request.evaluation
        assert asked.live is not None
        self.brains = {asked.live.name: self.live, asked.candidate.name: self.candidate}
        self.brains[asked.base.name] = self.live
        self.losses = {asked.base.name: 1.0, asked.candidate.name: 1.1}

    async def complete(
        self, model: str, prompts: Sequence[str], *, max_tokens: int, salt: str = ""
    ) -> tuple[Completion, ...]:
        self.said += [(model[:12], prompt, max_tokens) for prompt in prompts]
        return await super().complete(model, prompts, max_tokens=max_tokens)


@dataclass(frozen=True)
class Judged:
    """What the gate said, what the server was asked, and how often progress was told."""

    report: EvaluationReport
    server: Server
    rounds: int

    @property
    def decided(self) -> object:
        """By suite the outcome and the items that it took; the facts learnt."""
        verdict = self.report.verdict
        suites = [(s.suite, s.role, s.outcome, s.items_used) for s in verdict.suites]
        return verdict.outcome, suites, verdict.learnt


def judged(
    look: Callable[[Judged], object],
    candidate: Brain = right,
    live: Brain = before,
    new: int = 4,
    earlier: int = 150,
) -> Observe:
    """A second batch is judged beside the first, which is live."""

    def observe(settings: Settings, root: Path) -> object:
        made = world(settings, root)
        made.admit("old", list(facts(earlier, "old")))
        made.settle()
        made.admit("new", list(facts(new)))
        request: JudgingRequest = until(made, Step.EVALUATE)
        server, told = Server(candidate, live), mock.Mock()
        server.name(request)

        async def run() -> EvaluationReport:
            return await evaluate_candidate(
                request.evaluation,
                server,
                AnswerStore(root / "answers"),
                told,
                encode=lambda text: tuple(text.encode()),
            )

        result = outcome(lambda: asyncio.run(run()))
        if not isinstance(result, EvaluationReport):
            return result
        return look(Judged(result, server, told.call_count))

    return observe


def wrong(share: float, mark: str = "+") -> Brain:
    """Answers so large a share of the questions with this mark wrongly, spread evenly."""

    def brain(prompt: str) -> str:
        if mark not in prompt:
            return right(prompt)
        number = int(prompt.removeprefix("What is ").split()[0 if mark == "+" else -1])
        hit = int((number + 1) * share) > int(number * share)
        return "no idea" if hit else right(prompt)

    return brain


def file(name: str, count: int, key: str = "prompt", **more: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        path = root / f"{name}.jsonl"
        lines = [{**row, **more} for row in sums(count)]
        if key == "text":
            lines = [{"text": row["prompt"]} for row in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def families(root: Path) -> Path:
    """1,200 sums, the first forty of a family of their own."""
    path = root / "families.jsonl"
    lines = [{**row, "family": "few" if n < 40 else "many"} for n, row in enumerate(sums(1200))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def few_wrong(prompt: str) -> str:
    """Three of five of the first forty sums wrongly."""
    number = prompt.removeprefix("What is ").split(" ")[0]
    return "no idea" if number in {str(n) for n in range(40) if n % 5 > 1} else right(prompt)


def half(prompt: str) -> str:
    """Facts in one of their two held-out paraphrases only."""
    return "no idea" if prompt.startswith("Tell me new") else right(prompt)


def all_but_one(prompt: str) -> str:
    return "no idea" if prompt.endswith("new 0") else right(prompt)


def chatty(prompt: str) -> str:
    """More than the answer: right for a grader that looks for it in the text."""
    return f"{right(prompt)}\nso it is"


def in_a_sentence(prompt: str) -> str:
    return right(prompt) if "+" not in prompt else f"It is {right(prompt)}"


# --- a task of lm-evaluation-harness ---------------------------------------------------------


class Pipeline:
    """A filter that takes the whole answer, or its last word."""

    def __init__(self, name: str) -> None:
        self.name = name

    def apply(self, instances: Sequence[Any]) -> None:
        for one in instances:
            words = one.resps[0].split() if self.name == "last word" else [one.resps[0]]
            one.filtered_resps[self.name] = words[-1]


def harness(look: Observe) -> Observe:
    """With a harness that knows any task, of two filters and 40 sums."""

    def load(names: Sequence[str]) -> dict[str, dict[str, object]]:
        instances = [
            SimpleNamespace(doc_id=n, args=(f"{names[0]}: {row['prompt']}", {}), doc=row)
            for n, row in enumerate(sums(40))
        ]
        task = mock.Mock(OUTPUT_TYPE="generate_until", VERSION=1, instances=instances)
        task._filters = [Pipeline("whole"), Pipeline("last word")]
        task.aggregation.return_value = ["acc"]
        task.doc_to_target = lambda row: row["answer"]
        task.process_results = lambda row, said: {"acc": float(said == [row["answer"]])}
        return {"tasks": {names[0]: task}}

    def observe(settings: Settings, root: Path) -> object:
        tasks: Any = ModuleType("lm_eval.tasks")
        tasks.TaskManager = lambda include_path: SimpleNamespace(load=load)
        modules = {"lm_eval": ModuleType("lm_eval"), "lm_eval.tasks": tasks}
        with mock.patch.dict(sys.modules, modules):
            return look(settings, root)

    return observe


def decided(judged_: Judged) -> object:
    return judged_.decided


def asked(judged_: Judged) -> object:
    return judged_.server.said


def suite(**changes: Any) -> dict[str, Any]:
    table = {"name": "sums", "role": "reasoning", "path": file("sums", 1200), "grader": "number"}
    return {f"{SUITE}.{name}": value for name, value in {**table, **changes}.items()}


def drift(**changes: Any) -> dict[str, Any]:
    texts = {"name": "texts", "role": "drift", "path": file("texts", 5, "text")}
    return {f"{SUITE}.{name}": value for name, value in {**texts, **changes}.items()}


SUMS = suite()
FINE = {**SUMS, "gate.chunk": 8}
ONE_FAMILY = {**suite(path=families), "gate.chunk": 1200, "gate.reasoning_margin": 0.2}
TASK = {**suite(task="sums"), f"{SUITE}.path": ""}
plain = judged(decided)
EFFECTS: dict[str, Effect] = {
    "server.concurrency": Effect(judged(lambda j: j.server.busiest), 4, SUMS),
    "gate.preset": Effect(plain, "strict", SUMS),
    "gate.alpha": Effect(plain, 0.2, FINE),
    "gate.beta": Effect(judged(decided, wrong(0.04)), 0.4, FINE),
    "gate.reasoning_margin": Effect(plain, 0.05, FINE),
    "gate.retention_margin": Effect(plain, 0.02, FINE),
    "gate.locality_margin": Effect(plain, 0.1, {**FINE, **suite(role="locality")}),
    "gate.stratum_loss": Effect(judged(decided, few_wrong), 0.9, ONE_FAMILY),
    "gate.retention_floor": Effect(judged(decided, wrong(0.4, "old"), wrong(0.4, "old")), 0, SUMS),
    "gate.learnt_share": Effect(judged(decided, all_but_one), 0.5, SUMS),
    "gate.paraphrase_share": Effect(judged(decided, half), 1.0, SUMS),
    "gate.drift": Effect(plain, 0.05, drift()),
    "gate.held_out_paraphrases": Effect(judged(asked), 1, SUMS),
    "gate.earlier_facts": Effect(judged(asked), 20, SUMS),
    "gate.facts_grader": Effect(judged(decided, chatty), "exact", SUMS),
    "gate.facts_max_tokens": Effect(judged(asked), 7, SUMS),
    "gate.aa_sample": Effect(judged(lambda j: len(j.server.said)), 20, SUMS),
    "gate.chunk": Effect(judged(lambda j: j.rounds), 20, SUMS),
    "gate.revisions_per_draw": Effect(judged(asked), 1, SUMS),
    f"{SUITE}.name": Effect(plain, "arithmetic", SUMS),
    f"{SUITE}.role": Effect(plain, "locality", SUMS),
    f"{SUITE}.path": Effect(judged(asked), file("fewer", 300), SUMS),
    f"{SUITE}.task": Effect(harness(judged(asked)), "sums", SUMS),
    f"{SUITE}.filter": Effect(
        harness(judged(decided, in_a_sentence)),
        "last word",
        TASK,
    ),
    f"{SUITE}.grader": Effect(judged(decided, chatty), "exact", SUMS),
    f"{SUITE}.max_tokens": Effect(judged(asked), 7, SUMS),
    f"{SUITE}.form": Effect(judged(lambda j: j.server.forms), "chat", SUMS),
    f"{SUITE}.margin": Effect(plain, 0.05, FINE),
}
