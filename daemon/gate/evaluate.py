"""A candidate is asked, beside the reference and what is live, until the gate can judge it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from daemon.children.jobs import Progress
from daemon.gate import drift
from daemon.gate.answers import AnswerStore
from daemon.gate.asking import Asker, Sleep
from daemon.gate.drift import Encode
from daemon.gate.measuring import AnswerSource, GraderFailed
from daemon.gate.messages import EvaluationReport, EvaluationRequest
from daemon.gate.suite_run import SuiteRun, begin
from daemon.gate.suites import Suite
from daemon.serving.protocol import Server, ServerRefused
from policies.gate.evidence import Evidence, Stability, draw_order
from policies.gate.records import Outcome, Role, Scorecard, SuiteItem, SuiteVerdict, Verdict
from policies.gate.verdict import judge, next_items

Report = Callable[[Progress], None]


async def evaluate(
    request: EvaluationRequest,
    server: Server,
    measurements: AnswerStore,
    progress: Report,
    *,
    encode: Encode | None = None,
    sleep: Sleep = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> EvaluationReport:
    """Judge one candidate that is served under its own name; changes nothing on the server.

    Models are asked one after the other and never at once, since an engine may mix requests to
    the base with requests to an adapter. `encode` gives a text's token ids as the model takes it;
    without it drift is not measured. Raises `suites.BadSuite`, `asking.ModelNotServed` and
    `seams.ServerUnreachable`; whatever else goes wrong makes the verdict inconclusive.
    """
    asker = Asker(server, request.concurrency, sleep=sleep)
    begun, grades = begin(request)
    runs = tuple(run for run in begun if run.items)
    measuring = AnswerSource(asker, measurements, grades, request.engine)
    started = clock()
    for run in runs:
        await _stability(request, measuring, run)
        await _drift(request, server, encode, run)
    while wanted := _next(request, runs):
        for run, items in wanted:
            began = clock()
            await _ask(measuring, run, items)
            run.seconds += clock() - began
            progress(_progress(run, runs, clock() - started))
    return EvaluationReport(
        verdict=_noted(_verdict(request, runs), begun),
        scorecards=_scorecards(request, runs),
        seconds={run.suite.name: round(run.seconds, 3) for run in runs},
    )


# --- asking --------------------------------------------------------------------------------------


def _next(
    request: EvaluationRequest, runs: Sequence[SuiteRun]
) -> tuple[tuple[SuiteRun, tuple[str, ...]], ...]:
    """Every suite that the gate wants more of, and which items.

    A round asks all of them before the gate looks again, so that a candidate that fails on one
    still shows how it did on the others.
    """
    given_up = {name for run in runs for name in run.problems}
    wanted = next_items(
        _evidence(request, runs), request.limits, chunk=request.chunk, given_up=given_up
    )
    return tuple(
        (run, items)
        for run in runs
        if not (run.broken or run.silent) and (items := wanted.get(run.suite.name))
    )


async def _ask(measuring: AnswerSource, run: SuiteRun, items: Sequence[str]) -> None:
    """Have every target answer these items; what one cannot answer is given up for all."""
    numbers = _numbers(run.suite, items)
    for target in run.targets:
        try:
            answers = await measuring.answers(target, run.suite, numbers)
        except GraderFailed as error:
            run.broken = str(error)
            return
        run.results.setdefault(target, {}).update(answers.results)
        run.problems |= {
            name: f"{target.name} did not answer item {name}: {problem}"
            for name, problem in answers.problems.items()
        }
        if answers.problems:
            return


def _numbers(suite: Suite, names: Sequence[str]) -> list[int]:
    place = {item.id: number for number, item in enumerate(suite.items)}
    return [place[name] for name in names]


async def _stability(request: EvaluationRequest, measuring: AnswerSource, run: SuiteRun) -> None:
    """Ask the reference twice on items that depend on the suite alone: A against A."""
    if not request.aa_sample or request.reference not in run.targets:
        return
    if run.suite.role not in (Role.REASONING, Role.LOCALITY):
        return
    order = draw_order(run.suite.items, f"A/A {run.suite.fingerprint}")
    sample: list[SuiteItem] = [item for cluster in order for item in cluster][: request.aa_sample]
    numbers = _numbers(run.suite, [item.id for item in sample])
    try:
        first = (await measuring.answers(request.reference, run.suite, numbers)).results
        again = (await measuring.answers(request.reference, run.suite, numbers, trial=1)).results
    except GraderFailed as error:
        run.broken = str(error)
        return
    both = [
        (first[i.id].correct, again[i.id].correct)
        for i in sample
        if {i.id} <= first.keys() & again.keys()
    ]
    if both:
        run.stability = Stability(
            items=len(both),
            worse=sum(one and not other for one, other in both),
            better=sum(other and not one for one, other in both),
        )


async def _drift(
    request: EvaluationRequest, server: Server, encode: Encode | None, run: SuiteRun
) -> None:
    if run.suite.role is not Role.DRIFT or encode is None:
        return
    texts = [item.prompt for item in run.suite.items]
    try:
        run.drift = await drift.rise(
            server, encode, texts, reference=request.reference, candidate=request.candidate
        )
    except ServerRefused as refused:
        run.broken = f"the texts cannot be scored: {refused}"


# --- what comes of it ----------------------------------------------------------------------------


def _evidence(request: EvaluationRequest, runs: Sequence[SuiteRun]) -> Evidence:
    return Evidence(
        seed=request.order,
        live=request.live.name if request.live else None,
        suites=tuple(run.evidence(request) for run in runs),
    )


def _verdict(request: EvaluationRequest, runs: Sequence[SuiteRun]) -> Verdict:
    """The gate's verdict, where what could not be measured can never have passed."""
    verdict = judge(_evidence(request, runs), request.limits)
    why = {run.suite.name: reason for run in runs if (reason := _obstacle(run))}
    if not why:
        return verdict
    passed = verdict.outcome is Outcome.PASS
    return verdict.model_copy(
        update={
            "outcome": Outcome.INCONCLUSIVE if passed else verdict.outcome,
            "reasons": (*verdict.reasons, *(f"{name}: {why[name]}" for name in why)),
            "suites": tuple(_doubted(suite, why) for suite in verdict.suites),
        }
    )


def _noted(verdict: Verdict, runs: Sequence[SuiteRun]) -> Verdict:
    """The verdict with what was not asked, since facts have changed the answer."""
    notes = {
        run.suite.name: f"questions left out, which facts answer otherwise now: {len(run.left_out)}"
        + ("" if run.items else ", which are all it has")
        for run in runs
        if run.left_out
    }
    suites = tuple(
        suite.model_copy(update={"reason": f"{suite.reason}; {notes[suite.suite]}"})
        if suite.suite in notes
        else suite
        for suite in verdict.suites
    )
    reasons = (*verdict.reasons, *(f"{name}: {note}" for name, note in notes.items()))
    return verdict.model_copy(update={"suites": suites, "reasons": reasons})


def _obstacle(run: SuiteRun) -> str:
    if run.broken or not run.problems:
        return run.broken
    first, more = next(iter(run.problems.values())), len(run.problems) - 1
    return first + (f" (and {more} more)" if more else "")


def _doubted(suite: SuiteVerdict, why: Mapping[str, str]) -> SuiteVerdict:
    if suite.suite not in why or suite.outcome is Outcome.FAIL:
        return suite
    return suite.model_copy(
        update={"outcome": Outcome.INCONCLUSIVE, "reason": f"{suite.reason}; {why[suite.suite]}"}
    )


def _scorecards(request: EvaluationRequest, runs: Sequence[SuiteRun]) -> tuple[Scorecard, ...]:
    targets = (request.reference, *([request.live] if request.live else []), request.candidate)
    return tuple(
        Scorecard(
            model=target.name,
            sha256=target.sha256,
            suites=tuple(score for run in runs if (score := run.score(target)) is not None),
        )
        for target in targets
    )


def _progress(run: SuiteRun, runs: Sequence[SuiteRun], elapsed: float) -> Progress:
    """How far it is; the time left supposes that no suite ends early."""
    done, total = sum(r.asked for r in runs), sum(len(r.items) for r in runs)
    left = elapsed / done * (total - done) if done else None
    return Progress(stage=run.suite.name, done=done, total=total, seconds_left=left)
