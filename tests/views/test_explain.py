"""What a person and a program are told about a verdict."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console

from daemon.views.explain import (
    Explanation,
    explain_batch,
    explain_plan,
    rate_text,
    render,
    suite_line,
)
from policies.gate.records import (
    FailedItem,
    Flips,
    ItemResult,
    Outcome,
    Rate,
    Role,
    Scorecard,
    SuiteScore,
    SuiteVerdict,
    Verdict,
)
from policies.records import Batch, BatchState, Fact, Plan, PlanKind, PlanState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = Batch(
    id="b" * 64, name="[maths].jsonl", received_at=NOW, source="inbox", accepted=2, quarantined=1
)
PLAN = Plan(
    id=7,
    kind=PlanKind.LEARN,
    state=PlanState.REJECTED,
    parent=0,
    fact_ids=("f1", "f2"),
    rank=8,
    seed=0,
    created_at=NOW,
)
FACTS = {
    "f1": Fact(id="f1", prompt="7+5?", answer="13", eval_prompts=("What is 7+5?", "Add 7 to 5.")),
    "f2": Fact(id="f2", prompt="8+5?", answer="14"),
}
SCORE = SuiteScore(
    suite="new facts",
    role=Role.FACTS,
    fingerprint="x",
    results=(
        ItemResult(id="f1#0", correct=True, output="13"),
        ItemResult(id="f1#1", correct=False, output="twelve"),
        ItemResult(id="f2#0", correct=False, output="thirteen"),
    ),
)
CANDIDATE = Scorecard(model="c", sha256="c" * 64, suites=(SCORE,))
VERDICT = Verdict(
    outcome=Outcome.FAIL,
    rule="Non-inferior to base.",
    reasons=("reasoning: inferior to base: margin 2 pp, n = 64, Δ = -30.0 pp",),
    suites=(
        SuiteVerdict(
            suite="reasoning",
            role=Role.REASONING,
            outcome=Outcome.FAIL,
            reason="inferior to base: margin 2 pp, n = 64, Δ = -30.0 pp",
            base=Rate(value=0.9, low=0.85, high=0.94, items=64),
            candidate=Rate(value=0.6, low=0.5, high=0.7, items=64),
            items_used=64,
            newly_failing=tuple(
                FailedItem(item=str(n), prompt=f"[q{n}]", expected="12", was="12", now="13")
                for n in range(8)
            ),
            newly_passing=1,
        ),
    ),
    learnt=(),
    not_learnt=("f1", "f2", "gone"),
)


def explained() -> Explanation:
    return explain_batch(
        BATCH, BatchState.REJECTED, [explain_plan(PLAN, VERDICT, FACTS, CANDIDATE)]
    )


def text(explanation: Explanation) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(render(explanation))
    return captured.get()


def test_each_fact_not_learnt_shows_the_paraphrase_that_failed() -> None:
    first, second, unknown = explained().plans[0].not_learnt
    assert (first.prompt, first.expected, first.answer) == ("Add 7 to 5.", "13", "twelve")
    assert (second.prompt, second.answer) == ("8+5?", "thirteen")
    assert unknown.fact == "gone"


def test_the_text_has_the_figures_the_rule_and_the_examples() -> None:
    shown = text(explained())
    for part in (
        "[maths].jsonl",
        "rejected",
        "90.0 % (85.0–94.0)",
        "60.0 % (50.0–70.0)",
        "8/1",
        VERDICT.rule,
        "inferior to base: margin 2 pp, n = 64, Δ = -30.0 pp",
        "(5 of 8)",
        "[q0]",
        "Add 7 to 5.",
        "twelve",
    ):
        assert part in shown
    assert "[q7]" not in shown


def test_a_batch_without_a_plan_or_verdict_says_so() -> None:
    assert "No plan" in text(explain_batch(BATCH, BatchState.WAITING, []))
    open_plan = explain_plan(PLAN.model_copy(update={"state": PlanState.TRAINED}), None, FACTS)
    assert "not judged" in text(explain_batch(BATCH, BatchState.LEARNING, [open_plan]))


def test_each_suite_says_how_it_was_read_and_what_it_could_see() -> None:
    seeing = VERDICT.suites[0].model_copy(
        update={
            "grader": "contains",
            "grader_because": "of 100 answers of base, 92 right by 'contains', 0 by 'normalised'",
            "sees": 0.0312,
            "sees_items": 400,
            "flips": Flips(items=100, flipped=2, changed=31),
        }
    )
    said = suite_line(seeing)
    assert said.startswith("reasoning: graded by 'contains' (of 100 answers of base, 92 right")
    assert "could see a loss of 3.1 pp with 80 % power at n = 400" in said
    assert "2 flipped between right and wrong (2.0 %), 31 changed in some character" in said
    blind = seeing.model_copy(update={"sees": None, "blind": "base has 0.0 % right: add items"})
    assert "blind: base has 0.0 % right: add items" in suite_line(blind)
    small = seeing.model_copy(update={"sees": None})
    assert "too small to see any loss with 80 % power at n = 400" in suite_line(small)
    assert suite_line(VERDICT.suites[0]) == ""
    verdict = VERDICT.model_copy(update={"suites": (seeing,)})
    plan = explain_plan(PLAN, verdict, FACTS, CANDIDATE)
    shown = text(explain_batch(BATCH, BatchState.REJECTED, [plan]))
    assert "could see a loss of 3.1 pp" in " ".join(shown.split())
    assert '"flipped":2' in plan.model_dump_json()


def test_nothing_measured_is_a_dash_and_never_a_figure() -> None:
    assert rate_text(None) == "–"
    assert rate_text(Rate(value=float("nan"), low=0, high=1, items=0)) == "–"


def test_json_holds_everything_and_reads_back() -> None:
    whole = explained()
    assert Explanation.model_validate_json(whole.model_dump_json()) == whole
