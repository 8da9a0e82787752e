"""The evaluating step of a leased child: ask the candidate, judge it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from daemon.children.worker import Desk
from daemon.config.settings import Settings
from daemon.gate import evaluate as evaluation
from daemon.gate.answers import AnswerStore
from daemon.gate.drift import Encode
from daemon.gate.measuring import ServedModel
from daemon.gate.messages import EvaluationReport, EvaluationRequest, JudgingRequest, SuiteSource
from daemon.gate.suites import has_chat_template
from daemon.serving.client import HttpServer, Timeouts
from policies.errors import ServerRefused
from policies.gate.records import Role, UnlearningCheck
from policies.gate.sampling import draw_earlier
from policies.gate.unlearning import forgotten, with_forgotten
from policies.records import Fact


def evaluate(desk: Desk) -> EvaluationReport:
    """Judge the candidate of the request; goes on where an earlier child was interrupted."""
    return asyncio.run(_judge(JudgingRequest.model_validate_json(desk.request), desk))


async def _judge(request: JudgingRequest, desk: Desk) -> EvaluationReport:
    server = HttpServer(
        request.url,
        admin_key=_key(request.admin_key_file),
        user_key=_key(request.user_key_file),
        timeouts=Timeouts(request_s=request.request_timeout_s),
    )
    measurements = AnswerStore(request.measurements)
    try:
        report = await evaluation.evaluate(
            request.evaluation,
            server,
            measurements,
            progress=desk.progress,
            encode=_encode(request),
        )
        return await _with_forgotten(request, server, report)
    finally:
        await server.aclose()


async def _with_forgotten(
    request: JudgingRequest, server: HttpServer, report: EvaluationReport
) -> EvaluationReport:
    """The report with what the candidate still knows of retracted facts."""
    if not request.forget or request.model_dir is None:
        return report
    from daemon.gate.unlearning import recollect  # noqa: PLC0415 - as in _encode

    asked, problem = request.evaluation, ""
    found: tuple[UnlearningCheck, ...] = ()
    try:
        found = await recollect(
            server,
            request.forget,
            request.model_dir,
            reference=asked.reference,
            live=asked.live,
            candidate=asked.candidate,
        )
    except ServerRefused as refused:
        problem = str(refused)
    told = forgotten(found, request.tolerance)
    verdict = with_forgotten(report.verdict, told, request.tolerance, problem)
    return report.model_copy(update={"verdict": verdict})


def _encode(request: JudgingRequest) -> Encode | None:
    """How texts become tokens, where a suite has texts."""
    wanted = any(suite.role is Role.DRIFT for suite in request.evaluation.suites)
    if request.model_dir is None or not wanted:
        return None
    # It brings torch and transformers: seconds before the first question, and seldom needed.
    from adapters.models import load_tokenizer  # noqa: PLC0415

    tokenizer = load_tokenizer(request.model_dir)
    return lambda text: tuple(int(token) for token in tokenizer(text)["input_ids"])


def _key(path: Path | None) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path else None


def judging_request(
    settings: Settings,
    *,
    model_dir: Path,
    reference_sha256: str,
    live: ServedModel | None,
    candidate: ServedModel,
    facts: Sequence[Fact],
    earlier: Mapping[str, Sequence[Fact]],
    seed: int,
    drawing: int,
    superseded: Sequence[Fact] = (),
    forget: Sequence[Fact] = (),
) -> JudgingRequest:
    """What to ask of a candidate that the first replica has loaded.

    `reference_sha256` is the content hash of the checkpoint served from `model_dir`, `earlier`
    the valid facts learnt before by batch: all of them, or an even sample of more than
    `gate.earlier_facts`, from which `seed` draws; `superseded` are at most as many. Candidates
    with the same number `drawing` are asked the suites' items in the same order.
    """
    gate = settings.gate
    sample = draw_earlier(earlier, facts, gate.earlier_facts, seed)
    return JudgingRequest(
        evaluation=EvaluationRequest(
            engine=settings.server.kind,
            reference=ServedModel(name=settings.model.name, sha256=reference_sha256),
            live=live,
            candidate=candidate,
            order=f"{reference_sha256} {drawing}",
            suites=tuple(SuiteSource(**suite.model_dump()) for suite in gate.suites),
            trained_on=settings.trained_on,
            facts=tuple(facts),
            earlier=sample,
            standing=tuple(chain.from_iterable(earlier.values())),
            earlier_complete=len(sample) < gate.earlier_facts,
            superseded=tuple(superseded),
            superseded_complete=len(superseded) < gate.earlier_facts,
            chat=has_chat_template(model_dir),
            limits=gate.limits,
            concurrency=settings.server.concurrency,
            chunk=gate.chunk,
            facts_grader=gate.facts_grader,
            facts_max_tokens=gate.facts_max_tokens,
            paraphrases=gate.held_out_paraphrases,
            aa_sample=gate.aa_sample,
        ),
        url=settings.server.urls[0],
        admin_key_file=settings.server.admin_key_file or settings.layout.admin_key,
        user_key_file=settings.server.user_key_file,
        request_timeout_s=settings.server.request_timeout_s,
        measurements=settings.layout.measurements,
        model_dir=model_dir,
        forget=tuple(forget),
    )
