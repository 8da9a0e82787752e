"""How each suite's answers are compared: settled when the base is first measured, then kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from daemon.gate.answers import AnswerSource, GraderFailed
from daemon.gate.fact_suites import FACT_SUITES
from daemon.gate.messages import EvaluationRequest, SuiteCard
from daemon.gate.suite_run import SuiteRun
from policies.gate.baselines import PAIRED, Model
from policies.gate.blindness import CONTROLLED, NOT, mentioned, shuffled
from policies.gate.evidence import Control
from policies.gate.fitting import GraderChoice, choose_grader, fitting_sample
from policies.gate.grading import AUTO
from policies.gate.records import Verdict

FACTS_CARD: Final = "facts-grader"


async def settle_graders(
    request: EvaluationRequest, source: AnswerSource, runs: Sequence[SuiteRun]
) -> None:
    """Give every suite whose grader is to be found the one that fits how the base answers.

    What was found is written beside the base's answers under the suite's hash, for facts under one
    name, and read from there ever after. Raises `asking.ModelNotServed` and
    `errors.ServerUnreachable`.
    """
    for run in runs:
        if run.suite.grader.removeprefix(NOT) != AUTO or not run.items:
            continue
        card = card_name(run)
        kept = source.store.card(request.base.sha256, card)
        if kept is None:
            choice, sure = await _choose(request, source, run)
            if sure:
                kept = SuiteCard(suite=card, grader=choice.grader, because=choice.because)
                source.store.write_card(request.base.sha256, card, kept)
        else:
            choice = GraderChoice(grader=kept.grader, because=kept.because)
        negated = NOT if run.suite.grader.startswith(NOT) else ""
        run.suite = run.suite.graded_by(f"{negated}{choice.grader}")
        run.grader_because = choice.because


async def _choose(
    request: EvaluationRequest, source: AnswerSource, run: SuiteRun
) -> tuple[GraderChoice, bool]:
    """The grader, and whether base has answered the whole sample, so that it can be kept."""
    suite = run.suite.graded_by("normalised")
    sample = fitting_sample(run.items, run.configured)
    place = {item.id: number for number, item in enumerate(suite.items)}
    asked = await source.answers(request.base, suite, [place[item.id] for item in sample])
    return choose_grader(suite.role, sample, asked.results), not asked.problems


def card_name(run: SuiteRun) -> str:
    """Under which name a suite's card is kept: its hash as configured; facts change with every
    batch and share one."""
    return FACTS_CARD if run.suite.name in FACT_SUITES else run.configured


def record_cards(
    request: EvaluationRequest, source: AnswerSource, runs: Sequence[SuiteRun], verdict: Verdict
) -> None:
    """Write down what was seen of each configured suite, for `palorad doctor`."""
    judged = {suite.suite: suite for suite in verdict.suites}
    for run in runs:
        said = judged.get(run.suite.name)
        if said is None or run.suite.name in FACT_SUITES:
            continue
        card = SuiteCard(
            suite=run.suite.name,
            grader=run.suite.grader,
            because=run.grader_because,
            blind=said.blind,
            sees=said.sees,
        )
        if source.store.card(request.base.sha256, run.configured) != card:
            source.store.write_card(request.base.sha256, run.configured, card)


async def control_answers(source: AnswerSource, run: SuiteRun) -> None:
    """See what the grader makes of each baseline's answers to other questions."""
    if run.suite.role not in PAIRED:
        return
    compared: list[Model] = [name for name in run.models if name != "candidate"]
    for model in compared or list(run.models):
        seen = min(len(run.results.get(model, {})), CONTROLLED)
        if model in run.controls and run.controls[model].items == seen:
            continue
        try:
            run.controls[model] = await _control(source, run, model)
        except GraderFailed as error:
            run.broken = str(error)
            return


async def _control(source: AnswerSource, run: SuiteRun, model: Model) -> Control:
    items = {item.id: item for item in run.suite.items}
    results = list(run.results.get(model, {}).values())
    pairs = [(items[name], output) for name, output in shuffled(results)]
    passed = await source.swapped(run.suite, pairs)
    return Control(
        items=min(len(results), CONTROLLED),
        chance=sum(passed) / len(passed) if passed else 0.0,
        mentioned=mentioned(items, results, run.suite.grader),
    )
