"""The evaluation step of a leased child: ask the candidate, judge it."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.children.worker import Desk
from daemon.gate.answer_store import AnswerStore
from daemon.gate.evaluation import evaluate_candidate
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.serving.client import HttpServer, Timeouts

if TYPE_CHECKING:
    from daemon.gate.tokenising import Tokeniser


def evaluate(desk: Desk) -> EvaluationReport:
    """Judge the candidate of the request; goes on where an earlier child was interrupted."""
    return asyncio.run(_evaluate(JudgingRequest.model_validate_json(desk.request), desk))


async def _evaluate(request: JudgingRequest, desk: Desk) -> EvaluationReport:
    server = HttpServer(
        request.url,
        admin_key=_key(request.admin_key_file),
        user_key=_key(request.user_key_file),
        timeouts=Timeouts(request_s=request.request_timeout_s),
    )
    try:
        return await evaluate_candidate(
            request.evaluation,
            server,
            AnswerStore(request.answers),
            desk.progress,
            encode=lambda text: _tokeniser(request.model_dir).text(text),
            encode_answers=lambda facts: _tokeniser(request.model_dir).answers(facts),
        )
    finally:
        await server.aclose()


@cache
def _tokeniser(model_dir: Path) -> Tokeniser:
    # It brings torch and transformers: seconds before the first question, and seldom needed.
    from daemon.gate.tokenising import Tokeniser  # noqa: PLC0415

    return Tokeniser(model_dir)


def _key(path: Path | None) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path else None
