"""The evaluating step against the embedded server over HTTP, with a tiny random model."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.children.jobs import Progress
from daemon.embedded.app import Embedded, build
from daemon.gate import drift
from daemon.gate.answer_store import AnswerStore
from daemon.gate.evaluation import evaluate_candidate
from daemon.gate.messages import EvaluationReport, EvaluationRequest, ServedModel, SuiteSource
from daemon.gate.suites import load_texts
from daemon.serving.client import HttpServer
from policies.gate.limits import PRESETS
from policies.gate.records import Outcome, Role
from policies.records import Fact
from tests.support import tiny


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    built = build(Embedded(tiny.build(tmp_path_factory.mktemp("model"))))
    yield built
    built.state.engine.stop()


def test_fixed_text_is_scored_through_http(app: Any, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"Rain fell on day {n}."}) + "\n" for n in range(9))
    )

    async def run() -> float:
        server = HttpServer("http://tiny", transport=httpx.ASGITransport(app))
        texts = [item.prompt for item in load_texts(path, name="texts").items]
        try:
            return await drift.rise(
                server,
                lambda text: tuple(text.encode()),
                texts,
                base=served("base"),
                candidate=ServedModel(name="base", sha256="c" * 64),
            )
        finally:
            await server.aclose()

    assert asyncio.run(run()) == 0.0


def served(name: str) -> ServedModel:
    return ServedModel(name=name, sha256=hashlib.sha256(name.encode()).hexdigest())


def judge(app: Any, tmp_path: Path, request: EvaluationRequest) -> EvaluationReport:
    progress: list[Progress] = []

    async def run() -> EvaluationReport:
        server = HttpServer("http://tiny", transport=httpx.ASGITransport(app))
        try:
            store = AnswerStore(tmp_path / "kept")
            return await evaluate_candidate(request, server, store, progress.append)
        finally:
            await server.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_answers_come_through_http_in_both_forms(app: Any, tmp_path: Path, form: str) -> None:
    path = tmp_path / "suite.jsonl"
    rows = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = SuiteSource.model_validate(
        {
            "name": "sums",
            "role": Role.REASONING,
            "path": path,
            "grader": "number",
            "max_tokens": 4,
            "form": form,
        }
    )
    request = EvaluationRequest(
        engine="embedded",
        base=served("base"),
        live=None,
        candidate=ServedModel(name="base", sha256="c" * 64),
        order="drawn once",
        suites=(suite,),
        facts=(Fact(id="f", prompt="Who?", answer="nobody at all", eval_prompts=("Whom?",)),),
        chat=True,
        limits=PRESETS["balanced"].model_copy(update={"learnt_share": 0.0001}),
        facts_max_tokens=4,
        aa_sample=4,
    )
    report = judge(app, tmp_path, request)
    base, candidate = report.scorecards
    assert [s.results for s in base.suites] == [s.results for s in candidate.suites]
    assert any(result.output for s in candidate.suites for result in s.results)
    assert report.verdict.not_learnt == ("f",)
    assert report.verdict.outcome is Outcome.FAIL
