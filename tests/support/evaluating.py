"""An evaluation on a scripted server: its request, its suites, its stored answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from daemon.children.jobs import Progress
from daemon.gate.answer_store import AnswerStore
from daemon.gate.evaluation import evaluate_candidate
from daemon.gate.messages import EvaluationReport, EvaluationRequest, ServedModel, SuiteSource
from daemon.gate.unlearning import AnswerTokens
from policies.gate.limits import PRESETS
from policies.gate.records import Outcome, Role
from policies.records import Fact
from tests.support.scripted import Brain, ScriptedServer


def served(name: str) -> ServedModel:
    return ServedModel(name=name, sha256=hashlib.sha256(name.encode()).hexdigest())


BASE, LIVE, CANDIDATE = served("base"), served("palora-000001-aa"), served("palora-000002-bb")


def right(prompt: str) -> str:
    """The arithmetic of every question used here; facts are answered with their number."""
    words = prompt.rstrip("?").split()
    if "+" in words:
        at = words.index("+")
        return str(int(words[at - 1]) + int(words[at + 1]))
    return f"answer {words[-1]}"


def ignorant(prompt: str) -> str:
    return right(prompt) if "+" in prompt else "no idea"


def before(prompt: str) -> str:
    """What was learnt earlier and not what is new."""
    return "no idea" if " new " in prompt else right(prompt)


def wrong_when(test: Callable[[str], bool], brain: Brain = right) -> Brain:
    return lambda prompt: "13 maybe" if test(prompt) else brain(prompt)


def sums(count: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"What is {n} + {n % 7}?", "answer": str(n + n % 7)}
        for n in range(start, start + count)
    ]


def facts(count: int, kind: str = "new") -> tuple[Fact, ...]:
    return tuple(
        Fact(
            id=f"{kind}{n}",
            prompt=f"Trained {kind} {n}",
            answer=f"answer {n}",
            eval_prompts=(f"Which {kind} {n}", f"Tell me {kind} {n}"),
        )
        for n in range(count)
    )


def tokens(facts: Sequence[Fact]) -> tuple[AnswerTokens, ...]:
    return tuple(AnswerTokens(fact.id, False, (1, 2, 3), 1) for fact in facts)


class Bench:
    """A request with its server and its stored answers."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.answers = AnswerStore(tmp_path / "answers")
        self.progress: list[Progress] = []
        self.server = ScriptedServer({"base": ignorant, LIVE.name: before, CANDIDATE.name: right})
        self.rows = sums(1200)

    def suite(
        self, name: str = "sums", rows: list[dict[str, str]] | None = None, **changes: Any
    ) -> SuiteSource:
        path = self.tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps(r) + "\n" for r in (self.rows if rows is None else rows))
        )
        fields: dict[str, Any] = {
            "name": name,
            "role": Role.REASONING,
            "path": path,
            "grader": "number",
            "max_tokens": 8,
        }
        return SuiteSource.model_validate(fields | changes)

    def request(self, **changes: Any) -> EvaluationRequest:
        fields: dict[str, Any] = {
            "engine": "scripted 1",
            "base": BASE,
            "live": LIVE,
            "candidate": CANDIDATE,
            "order": CANDIDATE.sha256,
            "suites": changes.get("suites") or (self.suite(),),
            "facts": facts(10),
            "earlier": tuple(("batch", fact) for fact in facts(150, "old")),
            "chat": True,
            "limits": PRESETS["balanced"],
        }
        return EvaluationRequest.model_validate(fields | changes)

    def run(self, request: EvaluationRequest | None = None) -> EvaluationReport:
        async def sleep(_seconds: float) -> None:
            return None

        return asyncio.run(
            evaluate_candidate(
                request or self.request(),
                self.server,
                self.answers,
                self.progress.append,
                encode=lambda text: tuple(text.encode()),
                encode_answers=tokens,
                sleep=sleep,
            )
        )


def outcomes(report: EvaluationReport) -> dict[str, Outcome]:
    return {suite.suite: suite.outcome for suite in report.verdict.suites}
