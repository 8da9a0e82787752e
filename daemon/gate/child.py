"""The evaluation step of a leased child: ask the candidate, judge it."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.children.worker import StepContext
from daemon.gate.answer_store import AnswerStore
from daemon.gate.asking import Asker
from daemon.gate.evaluation import evaluate_candidate
from daemon.gate.judge_model import JudgeModel
from daemon.gate.messages import EvaluationReport, JudgeSource, JudgingRequest
from daemon.serving.client import HttpServer, Timeouts

if TYPE_CHECKING:
    from daemon.gate.tokenising import Tokeniser


def evaluate(desk: StepContext) -> EvaluationReport:
    """Judge the candidate of the request; goes on where an earlier child was interrupted."""
    return asyncio.run(_evaluate(JudgingRequest.model_validate_json(desk.request), desk))


async def _evaluate(request: JudgingRequest, desk: StepContext) -> EvaluationReport:
    server = HttpServer(
        request.url,
        admin_key=_key(request.admin_key_file),
        user_key=_key(request.user_key_file),
        timeouts=Timeouts(request_s=request.request_timeout_s),
    )
    store = AnswerStore(request.answers)
    judge = _judge(request.judge)
    try:
        return await evaluate_candidate(
            request.evaluation,
            server,
            store,
            desk.progress,
            encode=lambda text: _tokeniser(request.model_dir).text(text),
            encode_answers=lambda facts: _tokeniser(request.model_dir).answers(facts),
            judge_model=_judge_model(request.judge, judge, store),
        )
    finally:
        await server.aclose()
        if judge is not None:
            await judge.aclose()


def _judge(source: JudgeSource | None) -> HttpServer | None:
    if source is None:
        return None
    return HttpServer(
        source.url.removesuffix("/v1"),
        user_key=_key(source.key_file),
        timeouts=Timeouts(request_s=source.timeout_s),
    )


def _judge_model(
    source: JudgeSource | None, server: HttpServer | None, store: AnswerStore
) -> JudgeModel | None:
    if source is None or server is None:
        return None
    return JudgeModel(source, Asker(server, source.concurrency, attempts=2), store)


@cache
def _tokeniser(model_dir: Path) -> Tokeniser:
    # It brings torch and transformers: seconds before the first question, and seldom needed.
    from daemon.gate.tokenising import Tokeniser  # noqa: PLC0415

    return Tokeniser(model_dir)


def _key(path: Path | None) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path else None
