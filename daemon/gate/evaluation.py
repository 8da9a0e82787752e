"""A candidate is asked, beside base and live, until the gate can judge it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import combinations

from daemon.children.jobs import Progress
from daemon.gate import drift
from daemon.gate.answer_store import AnswerStore
from daemon.gate.answers import AnswerSource, GraderFailed
from daemon.gate.asking import Asker, Sleep
from daemon.gate.drift import Encode
from daemon.gate.graders import control_answers, record_cards, settle_graders
from daemon.gate.judge_model import JudgeModel
from daemon.gate.messages import EvaluationReport, EvaluationRequest
from daemon.gate.suite_run import SuiteRun, begin
from daemon.gate.suites import Suite
from daemon.gate.unlearning import EncodeAnswers, check_unlearning
from daemon.serving.protocol import Server, ServerRefused
from policies.gate.baselines import Model
from policies.gate.evidence import Evidence
from policies.gate.records import Role, Scorecard, UnlearningEvidence
from policies.gate.sampling import aa_sample
from policies.gate.stability import stability
from policies.gate.verdict import judge, next_round

OnProgress = Callable[[Progress], None]


async def evaluate_candidate(
    request: EvaluationRequest,
    server: Server,
    store: AnswerStore,
    progress: OnProgress,
    *,
    encode: Encode | None = None,
    encode_answers: EncodeAnswers | None = None,
    judge_model: JudgeModel | None = None,
    sleep: Sleep = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> EvaluationReport:
    """Measure one candidate that is served under its own name, and have the gate judge it.

    Changes nothing on the server. Models are asked one after the other and never at once, since an
    engine may mix requests to the base with requests to an adapter. `encode` and `encode_answers`
    give token ids and `judge_model` grades; what needs them is not measured without, and so cannot
    pass. Raises
    `suites.BadSuite`, `asking.ModelNotServed` and `errors.ServerUnreachable`; whatever else goes
    wrong is part of the evidence.
    """
    asker = Asker(server, request.concurrency, sleep=sleep)
    runs, grades = begin(request)
    asked = tuple(run for run in runs if run.items)
    source = AnswerSource(asker, store, grades, request.engine, judge_model)
    started = clock()
    await settle_graders(request, source, asked)
    for run in asked:
        await _ask_twice(request, source, run)
        await _drift(request, server, encode, run)
    while (
        planned := next_round(_evidence(request, runs), request.limits, chunk=request.chunk)
    ).items:
        left = dict(planned.left)
        for run in runs:
            if not (items := planned.items.get(run.suite.name)):
                continue
            began = clock()
            await _ask(source, run, items)
            run.seconds += clock() - began
            left[run.suite.name] -= len(items)
            elapsed = clock() - started if planned.estimated else None
            progress(_progress(run, asked, sum(left.values()), elapsed))
    evidence = _evidence(request, runs, await _unlearning(request, server, encode_answers))
    verdict = judge(evidence, request.limits)
    record_cards(request, source, asked, verdict)
    return EvaluationReport(
        verdict=verdict,
        scorecards=_scorecards(request, asked),
        seconds={run.suite.name: round(run.seconds, 3) for run in asked},
    )


async def _ask(source: AnswerSource, run: SuiteRun, items: Sequence[str]) -> None:
    """Have every model answer these items; what one cannot answer is given up for all."""
    numbers = _numbers(run.suite, items)
    for part, model in run.models.items():
        try:
            answers = await source.answers(model, run.suite, numbers)
        except GraderFailed as error:
            run.broken = str(error)
            return
        run.results.setdefault(part, {}).update(answers.results)
        run.unanswered |= {
            name: f"{model.name} did not answer item {name}: {problem}"
            for name, problem in answers.problems.items()
        }
        if answers.problems:
            return
    await control_answers(source, run)


def _numbers(suite: Suite, names: Sequence[str]) -> list[int]:
    place = {item.id: number for number, item in enumerate(suite.items)}
    return [place[name] for name in names]


async def _ask_twice(request: EvaluationRequest, source: AnswerSource, run: SuiteRun) -> None:
    """Ask base twice on items that depend on the suite alone: A against A."""
    suite = run.suite
    sample = aa_sample(suite.role, suite.items, suite.fingerprint, request.aa_sample)
    if not sample:
        return
    numbers = _numbers(suite, [item.id for item in sample])
    try:
        first = await source.answers(request.base, suite, numbers)
        second = await source.answers(request.base, suite, numbers, trial=1)
    except GraderFailed as error:
        run.broken = str(error)
        return
    run.stability = stability(first.results, second.results)
    if run.stability is None:
        why = next(iter({**first.problems, **second.problems}.values()), "")
        run.broken = f"base could not be asked twice, so how stable it is cannot be told: {why}"


async def _drift(
    request: EvaluationRequest, server: Server, encode: Encode | None, run: SuiteRun
) -> None:
    if run.suite.role is not Role.DRIFT or encode is None:
        return
    texts = [item.prompt for item in run.suite.items]
    try:
        run.drift = await drift.rise(
            server, encode, texts, base=request.base, candidate=request.candidate
        )
    except ServerRefused as refused:
        run.broken = f"the texts cannot be scored: {refused}"


async def _unlearning(
    request: EvaluationRequest, server: Server, encode_answers: EncodeAnswers | None
) -> UnlearningEvidence | None:
    if not request.unlearn:
        return None
    asked = tuple(fact.id for fact in request.unlearn)
    if encode_answers is None:
        why = "the answers cannot be turned into tokens"
        return UnlearningEvidence(asked=asked, problem=why)
    try:
        checks = await check_unlearning(
            server,
            encode_answers(request.unlearn),
            base=request.base,
            live=request.live,
            candidate=request.candidate,
        )
    except ServerRefused as refused:
        return UnlearningEvidence(asked=asked, problem=str(refused))
    return UnlearningEvidence(asked=asked, checks=checks)


def _evidence(
    request: EvaluationRequest,
    runs: Sequence[SuiteRun],
    unlearning: UnlearningEvidence | None = None,
) -> Evidence:
    return Evidence(
        seed=request.order,
        live=request.live.name if request.live else None,
        suites=tuple(run.evidence() for run in runs),
        unlearning=unlearning,
        twins=_twins(request),
    )


def _twins(request: EvaluationRequest) -> tuple[tuple[Model, Model], ...]:
    """Models that are the same weights, or are asked under the same name."""
    parts: tuple[Model, ...] = ("base", "live", "candidate")
    there = [(part, model) for part in parts if (model := request.served(part)) is not None]
    return tuple(
        (one, other)
        for (one, first), (other, second) in combinations(there, 2)
        if first.sha256 == second.sha256 or first.name == second.name
    )


def _scorecards(request: EvaluationRequest, runs: Sequence[SuiteRun]) -> tuple[Scorecard, ...]:
    return tuple(
        Scorecard(
            model=model.name,
            sha256=model.sha256,
            suites=tuple(score for run in runs if (score := run.score(part)) is not None),
        )
        for part in ("base", "live", "candidate")
        if (model := request.served(part)) is not None
    )


def _progress(
    run: SuiteRun, runs: Sequence[SuiteRun], left: int, elapsed: float | None
) -> Progress:
    """How far it is; only what the gate may still ask is left. No time before it can be told."""
    done = sum(r.asked for r in runs)
    seconds = elapsed / done * left if done and elapsed is not None else None
    return Progress(stage=run.suite.name, done=done, total=done + left, seconds_left=seconds)
