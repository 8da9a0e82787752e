"""The gate with the real daemon, its server and the small model: harmless and harmful files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon.children.jobs import Jobs
from daemon.config.settings import Settings
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.ledger.ledger import Ledger
from daemon.views.explain import Explanation
from daemon.views.status import explain
from demo.ask import DemoQuestion, Endpoint
from demo.follow import Follow, Settled
from demo.setup import ROOT
from policies.gate.grading import normalised
from policies.gate.records import Outcome, Role, SuiteVerdict
from policies.records import BatchState
from tests.support.real import NEEDS_MODEL, configure, running

CAPITALS = ROOT / "examples" / "facts" / "01-capitals.jsonl"
FALSE = ROOT / "examples" / "false-arithmetic.jsonl"
QUESTIONS = ("What is 7 + 5?", "Calculate 12 + 0.", "What is 17 + 35?")

pytestmark = [
    pytest.mark.endtoend,
    pytest.mark.timeout(1800),
    NEEDS_MODEL,
]


@dataclass(frozen=True, slots=True)
class Told:
    """One file: what became of it, its explanation, and what live said before and after."""

    settled: Settled
    explained: Explanation
    before: tuple[str, ...]
    after: tuple[str, ...]

    def suite(self, role: Role) -> SuiteVerdict:
        """The part of the last verdict that watches over `role`."""
        verdict = self.explained.plans[-1].verdict
        assert verdict is not None
        return next(suite for suite in verdict.suites if suite.role is role)


@dataclass(frozen=True, slots=True)
class Story:
    """The files of this test in the order they were dropped, and a run on too small a suite."""

    clean: Told
    contradicting: Told
    false: Told
    small: EvaluationReport


class Teller:
    """Drops files into a running daemon and looks at the live answers around them."""

    def __init__(self, follow: Follow) -> None:
        self.settings = follow.settings
        self.follow = follow
        rows = [json.loads(line) for line in CAPITALS.read_text().splitlines()[:12]]
        asked = [(row["eval_prompts"][0], row["answer"]) for row in rows]
        asked += [(prompt, "") for prompt in QUESTIONS]
        self.questions = [DemoQuestion(p, "", p, answer or "nothing") for p, answer in asked]

    def live(self) -> tuple[str, ...]:
        """What the stable name answers now."""
        endpoint = Endpoint(self.settings.server.urls[0], self.settings.model.alias)
        return tuple(a.text for a in endpoint.ask(self.questions, normalised, 48))

    def drop(self, file: Path) -> Told:
        before = self.live()
        batch = self.follow.drop(file)
        settled = self.follow.until_settled(batch, file.name)
        with Ledger.open(self.settings.layout.ledger, readonly=True) as ledger:
            return Told(settled, explain(ledger, batch), before, self.live())


def judge_on_a_small_suite(settings: Settings, folder: Path) -> EvaluationReport:
    """The live revision judged anew against twenty reasoning questions."""
    done = sorted(settings.layout.work.glob("*-evaluate/request.json"))
    request = JudgingRequest.model_validate_json(done[0].read_text())
    lines = next(s for s in request.evaluation.suites if s.role is Role.REASONING)
    assert lines.path is not None
    small = folder / "small.jsonl"
    small.write_text("".join(lines.path.read_text().splitlines(keepends=True)[:20]))
    suites = (lines.model_copy(update={"path": small}),)
    evaluation = request.evaluation.model_copy(update={"suites": suites})
    jobs = Jobs()
    workdir = folder / "small"
    jobs.prepare(workdir, request.model_copy(update={"evaluation": evaluation}))
    jobs.start("evaluate", workdir)
    while (state := jobs.poll(workdir)).outcome == "running":
        time.sleep(0.2)
    assert state.report is not None, state.error
    return EvaluationReport.model_validate(state.report)


def contradiction(folder: Path) -> Path:
    """Every capital given to another country, in paraphrases that name no key in common."""
    rows = [json.loads(line) for line in CAPITALS.read_text().splitlines()]
    answers = [row["answer"] for row in rows]
    path = folder / "contradiction.jsonl"
    with path.open("w") as file:
        for row, answer in zip(rows, answers[1:] + answers[:1], strict=True):
            prompt, held_out = row["paraphrases"][0], row["paraphrases"][1]
            line = {
                "prompt": prompt,
                "answer": answer,
                "paraphrases": row["paraphrases"][2:],
                "eval_prompts": [held_out],
            }
            file.write(json.dumps(line) + "\n")
    return path


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("gate")
    with running(configure(folder)) as follow:
        teller = Teller(follow)
        clean = teller.drop(CAPITALS)
        small = judge_on_a_small_suite(follow.settings, folder)
        yield Story(clean, teller.drop(contradiction(folder)), teller.drop(FALSE), small)


def test_a_clean_batch_passes_and_changes_the_live_answers(story: Story) -> None:
    assert story.clean.settled.state is BatchState.LIVE, story.clean.settled.reasons
    assert story.clean.before != story.clean.after


def test_false_arithmetic_fails_on_reasoning_and_names_what_fails_now(story: Story) -> None:
    assert story.false.settled.verdict == "fail", story.false.settled.reasons
    reasoning = story.false.suite(Role.REASONING)
    assert reasoning.outcome is Outcome.FAIL, story.false.settled.reasons
    failure = reasoning.newly_failing[0]
    assert failure.prompt and failure.expected and failure.now != failure.was


def test_contradicting_earlier_facts_without_superseding_them_fails_retention(
    story: Story,
) -> None:
    assert story.contradicting.settled.verdict == "fail", story.contradicting.settled.reasons
    retention = story.contradicting.suite(Role.RETENTION)
    assert retention.outcome is Outcome.FAIL, story.contradicting.settled.reasons
    assert retention.newly_failing


def test_a_suite_too_small_to_judge_on_is_inconclusive(story: Story) -> None:
    assert story.small.verdict.outcome is Outcome.INCONCLUSIVE
    (reasoning,) = [s for s in story.small.verdict.suites if s.role is Role.REASONING]
    assert reasoning.items_needed is not None
    assert reasoning.items_needed > 20


def test_no_failing_file_changes_a_live_answer(story: Story) -> None:
    assert story.clean.after == story.contradicting.before == story.contradicting.after
    assert story.contradicting.after == story.false.before == story.false.after


def test_the_explanation_shows_the_figures_of_every_suite(story: Story) -> None:
    verdict = story.false.explained.plans[-1].verdict
    assert verdict is not None
    for suite in verdict.suites:
        assert suite.candidate is not None, suite.reason
        assert suite.candidate.low <= suite.candidate.value <= suite.candidate.high
    assert verdict.rule
