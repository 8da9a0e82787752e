"""Why a batch is live, rejected or waiting, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from policies.gate.figures import percent
from policies.gate.records import Outcome, Rate, Scorecard, SuiteVerdict, Verdict
from policies.records import Batch, BatchState, Fact, Plan, PlanKind, PlanState, Record

SHOWN: Final = 5
_COLOURS: Final = {
    Outcome.PASS: "green",
    Outcome.FAIL: "red",
    Outcome.INCONCLUSIVE: "yellow",
}


class NotLearnt(Record):
    """A fact that the candidate has not learnt: a paraphrase asked, and its wrong answer."""

    fact: str
    prompt: str
    expected: str
    answer: str = ""


class PlanExplained(Record):
    """One attempt at a batch, and the gate's verdict on it."""

    plan: int
    kind: PlanKind
    state: PlanState
    because: str = ""
    verdict: Verdict | None = None
    not_learnt: tuple[NotLearnt, ...] = ()


class Explanation(Record):
    """A batch and every plan that was made for it, in their order."""

    batch: str
    name: str
    state: BatchState
    accepted: int
    quarantined: int
    plans: tuple[PlanExplained, ...]


def explain_plan(
    plan: Plan,
    verdict: Verdict | None,
    facts: Mapping[str, Fact],
    candidate: Scorecard | None = None,
) -> PlanExplained:
    """A plan with its verdict; `candidate` has the wrong answers to facts not learnt."""
    missed = verdict.not_learnt if verdict else ()
    return PlanExplained(
        plan=plan.id,
        kind=plan.kind,
        state=plan.state,
        because=plan.because,
        verdict=verdict,
        not_learnt=tuple(
            _not_learnt(facts[name], candidate) if name in facts else _unknown(name)
            for name in missed
        ),
    )


def explain_batch(batch: Batch, state: BatchState, plans: Sequence[PlanExplained]) -> Explanation:
    """A batch with its plans."""
    return Explanation(
        batch=batch.id,
        name=batch.name,
        state=state,
        accepted=batch.accepted,
        quarantined=batch.quarantined,
        plans=tuple(sorted(plans, key=lambda explained: explained.plan)),
    )


def _unknown(fact: str) -> NotLearnt:
    return NotLearnt(fact=fact, prompt="", expected="")


def _not_learnt(fact: Fact, candidate: Scorecard | None) -> NotLearnt:
    asked = fact.eval_prompts or (fact.prompt,)
    wrong = {
        result.id.rpartition("#")[2]: result.output
        for score in (candidate.suites if candidate else ())
        for result in score.results
        if result.id.rpartition("#")[0] == fact.id and not result.correct
    }
    number = next((n for n in range(len(asked)) if str(n) in wrong), 0)
    return NotLearnt(
        fact=fact.id,
        prompt=asked[number],
        expected=fact.answer,
        answer=wrong.get(str(number), ""),
    )


def render(explanation: Explanation, *, shown: int = SHOWN) -> RenderableType:
    """An explanation as text and tables; at most `shown` examples of each kind."""
    head = Text.from_markup(
        f"[bold]{escape(explanation.name)}[/bold]  {explanation.batch[:12]}  "
        f"{explanation.state}  {explanation.accepted} facts"
        + (f", {explanation.quarantined} lines quarantined" if explanation.quarantined else "")
    )
    if not explanation.plans:
        return Group(head, Text("No plan has been made for it yet."))
    return Group(head, *(_render_plan(plan, shown) for plan in explanation.plans))


def _render_plan(explained: PlanExplained, shown: int) -> RenderableType:
    title = f"Plan {explained.plan} ({explained.kind}) is {explained.state}"
    if explained.because:
        title += f": {explained.because}"
    parts: list[RenderableType] = [Text(""), Text(title, style="bold")]
    verdict = explained.verdict
    if verdict is None:
        return Group(*parts, Text("The gate has not judged it yet."))
    parts.append(Text(f"Verdict: {verdict.outcome}", style=_COLOURS[verdict.outcome]))
    parts += [Text(f"  {reason}") for reason in verdict.reasons]
    parts += [Text(f"Rule: {verdict.rule}"), suites_table(verdict.suites)]
    parts += [Text(f"  {line}") for suite in verdict.suites if (line := suite_line(suite))]
    parts += [_failures_table(suite, shown) for suite in verdict.suites if suite.newly_failing]
    if explained.not_learnt:
        parts.append(_not_learnt_table(explained.not_learnt, shown))
    return Group(*parts)


def suites_table(suites: Sequence[SuiteVerdict]) -> Table:
    """One line for each suite: its figures with their intervals, and what was decided."""
    table = Table()
    for column in ("suite", "base", "live", "candidate", "items", "lost/won", "verdict"):
        table.add_column(column)
    for suite in suites:
        needed = f" of {suite.items_needed} needed" if suite.items_needed else ""
        table.add_row(
            escape(suite.suite),
            rate_text(suite.base),
            rate_text(suite.live),
            rate_text(suite.candidate),
            f"{suite.items_used}{needed}",
            f"{len(suite.newly_failing)}/{suite.newly_passing}",
            Text(f"{suite.outcome}: {suite.reason}", style=_COLOURS[suite.outcome]),
        )
    return table


def suite_line(suite: SuiteVerdict) -> str:
    """How the suite was read and how much it could see: grader, power, flips, blindness."""
    parts: list[str] = []
    if suite.grader:
        because = f" ({suite.grader_because})" if suite.grader_because else ""
        parts.append(f"graded by {suite.grader!r}{because}")
    if suite.blind:
        parts.append(f"blind: {suite.blind}")
    elif suite.sees is not None:
        parts.append(
            f"could see a loss of {100 * suite.sees:.1f} pp with 80 % power at "
            f"n = {suite.sees_items}"
        )
    elif suite.sees_items:
        parts.append(f"too small to see any loss with 80 % power at n = {suite.sees_items}")
    if flips := suite.flips:
        parts.append(
            f"of {flips.items} items that base answered twice, {flips.flipped} flipped between "
            f"right and wrong ({percent(flips.flipped / flips.items)}), {flips.changed} changed "
            "in some character"
        )
    return f"{suite.suite}: {'; '.join(parts)}" if parts else ""


def rate_text(rate: Rate | None) -> str:
    """A share in percent with its interval; a dash where nothing was measured."""
    if rate is None or not rate.items:
        return "–"
    return f"{percent(rate.value)} ({100 * rate.low:.1f}–{100 * rate.high:.1f})"


def _failures_table(suite: SuiteVerdict, shown: int) -> RenderableType:
    failures = suite.newly_failing
    rows = [(f.prompt, f.expected, f.was, f.now) for f in failures[:shown]]
    title = f"Newly failing in {suite.suite}{_of(len(failures), shown)}"
    return _examples(title, ("prompt", "expected", "before", "candidate"), rows)


def _not_learnt_table(missed: Sequence[NotLearnt], shown: int) -> RenderableType:
    rows = [(m.fact, m.prompt, m.expected, m.answer) for m in missed[:shown]]
    title = f"Facts not learnt{_of(len(missed), shown)}"
    return _examples(title, ("fact", "prompt", "expected", "answer"), rows)


def _examples(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]
) -> RenderableType:
    table = Table(show_lines=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return Group(Text(title, style="bold"), table)


def _of(count: int, shown: int) -> str:
    return f" ({min(count, shown)} of {count})" if count > shown else f" ({count})"
