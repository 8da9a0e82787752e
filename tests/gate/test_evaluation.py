"""A candidate is judged through the server: early, completely, and never on missing answers."""

from __future__ import annotations

import asyncio
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from daemon.children.jobs import Progress
from daemon.config.gate import GateSettings, SuiteSettings
from daemon.gate.answer_store import AnswerStore
from daemon.gate.asking import ModelNotServed
from daemon.gate.evaluation import evaluate_candidate
from daemon.gate.messages import EvaluationReport, EvaluationRequest
from daemon.gate.suites import BadSuite
from daemon.serving.protocol import ServerRefused, ServerUnreachable
from policies.gate.limits import PRESETS
from policies.gate.records import Outcome, Role
from policies.records import Fact
from tests.support.evaluating import (
    BASE,
    CANDIDATE,
    LIVE,
    Bench,
    facts,
    outcomes,
    right,
    served,
    sums,
    wrong_when,
)
from tests.support.scripted import Brain, ScriptedServer, unreachable


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_harmless_candidate_passes_before_all_items_are_asked(bench: Bench) -> None:
    report = bench.run()
    assert report.verdict.outcome is Outcome.PASS, report.verdict.reasons
    assert len(report.verdict.learnt) == 10
    (reasoning,) = [s for s in report.verdict.suites if s.suite == "sums"]
    assert 0 < reasoning.items_used < 1200
    assert [card.model for card in report.scorecards] == ["base", LIVE.name, CANDIDATE.name]
    assert not bench.server.mixed
    assert bench.server.busiest <= 32


def test_facts_are_asked_in_both_forms_and_never_as_trained(bench: Bench) -> None:
    bench.run()
    asked = {p: form for p, form in bench.server.forms.items() if "+" not in p}
    assert set(asked.values()) == {"chat", "plain"}
    assert not any(prompt.startswith("Trained") for prompt in asked)
    bench.server.forms.clear()
    bench.server.brains["other"] = right
    bench.run(bench.request(chat=False, candidate=served("other")))
    assert set(bench.server.forms.values()) == {"plain"}


def test_damaged_reasoning_fails_early_and_names_what_fails_now(bench: Bench) -> None:
    bench.server.brains[CANDIDATE.name] = wrong_when(lambda p: "+ 5" in p or "+ 6" in p)
    report = bench.run()
    assert report.verdict.outcome is Outcome.FAIL
    (reasoning,) = [s for s in report.verdict.suites if s.suite == "sums"]
    assert reasoning.items_used < 300
    failure = reasoning.newly_failing[0]
    assert failure.prompt.endswith(("+ 5?", "+ 6?"))
    assert (failure.was, failure.now) == (right(failure.prompt), "13 maybe")


def test_lost_earlier_facts_fail_retention(bench: Bench) -> None:
    bench.server.brains[CANDIDATE.name] = wrong_when(lambda p: "old" in p and p[-1] in "123")
    report = bench.run()
    assert outcomes(report)["earlier facts"] is Outcome.FAIL
    assert report.verdict.outcome is Outcome.FAIL


KEEPS_OLD = wrong_when(lambda p: "gone" in p)


@pytest.mark.parametrize(
    ("live", "candidate", "outcome"),
    [
        (right, KEEPS_OLD, Outcome.PASS),
        (KEEPS_OLD, KEEPS_OLD, Outcome.PASS),
        (KEEPS_OLD, right, Outcome.FAIL),
    ],
)
def test_a_superseded_answer_that_comes_back_fails(
    bench: Bench, live: Brain, candidate: Brain, outcome: Outcome
) -> None:
    """The scripted right answer is the old one here, so what is wrong has let go of it."""
    bench.server.brains |= {LIVE.name: live, CANDIDATE.name: candidate}
    old = {"superseded": facts(8, "gone"), "superseded_complete": True}
    report = bench.run(bench.request(**old, suites=(bench.suite(),)))
    assert outcomes(report)["superseded facts"] is outcome, report.verdict.reasons
    (said,) = [s for s in report.verdict.suites if s.suite == "superseded facts"]
    if outcome is Outcome.FAIL:
        assert said.newly_failing[0].expected.startswith("not answer ")


@pytest.mark.parametrize(
    ("lost", "outcome"),
    [(0, Outcome.PASS), (2, Outcome.PASS), (3, Outcome.FAIL), (30, Outcome.FAIL)],
)
def test_few_earlier_facts_decide_when_they_are_all_there_are(
    bench: Bench, lost: int, outcome: Outcome
) -> None:
    few = tuple(("batch", fact) for fact in facts(30, "old"))
    gone = {f"old {n}" for n in range(lost)}
    bench.server.brains[CANDIDATE.name] = wrong_when(
        lambda p: "old" in p and " ".join(p.split()[-2:]) in gone
    )
    every = bench.run(bench.request(earlier=few, earlier_complete=True, suites=(bench.suite(),)))
    assert outcomes(every)["earlier facts"] is outcome, every.verdict.reasons
    sample = bench.run(bench.request(earlier=few))
    assert outcomes(sample)["earlier facts"] is not Outcome.PASS


def test_a_known_question_that_facts_answer_otherwise_is_not_asked(bench: Bench) -> None:
    """The world has changed there; answering as the facts say is no damage."""
    rows = [{"prompt": f"Whose is {n}", "answer": f"answer {n}"} for n in range(200)]
    known = bench.suite("known", rows, role=Role.LOCALITY, grader="normalised")
    changed = tuple(
        Fact(id=f"c{n}", prompt=f"Whose is {n}", answer=f"another {n}") for n in range(60)
    )
    prompts = {fact.prompt: fact.answer for fact in changed}
    earlier = {fact.prompt: fact.answer for fact in changed[:40]}

    def updated(prompt: str) -> str:
        return prompts.get(prompt, right(prompt))

    def before_it(prompt: str) -> str:
        return earlier.get(prompt, right(prompt))

    bench.server.brains = {"base": right, LIVE.name: before_it, CANDIDATE.name: updated}
    suites = (bench.suite(), known)
    untold = bench.run(bench.request(suites=suites))
    assert outcomes(untold)["known"] is Outcome.FAIL
    report = bench.run(bench.request(suites=suites, standing=changed[:40], facts=changed[40:]))
    verdict = next(s for s in report.verdict.suites if s.suite == "known")
    assert verdict.outcome is Outcome.PASS
    assert "60 questions left out: facts have changed their answers" in verdict.reason
    assert report.verdict.outcome is Outcome.PASS

    everything = tuple(Fact(id=f"c{n}", prompt=f"Whose is {n}", answer="now") for n in range(200))
    report = bench.run(bench.request(suites=suites, standing=everything))
    assert "known" not in outcomes(report)
    all_left_out = "known: 200 questions left out: facts have changed their answers; no question"
    assert any(reason.startswith(all_left_out) for reason in report.verdict.reasons)


def test_facts_not_learnt_are_named(bench: Bench) -> None:
    bench.server.brains[CANDIDATE.name] = wrong_when(lambda p: p.endswith("new 3"))
    report = bench.run()
    assert report.verdict.not_learnt == ("new3",)
    assert report.verdict.outcome is Outcome.PASS


def test_too_few_items_are_inconclusive_and_say_how_many_are_needed(bench: Bench) -> None:
    report = bench.run(bench.request(suites=(bench.suite(rows=sums(20)),)))
    assert report.verdict.outcome is Outcome.INCONCLUSIVE
    (reasoning,) = [s for s in report.verdict.suites if s.suite == "sums"]
    assert reasoning.items_needed is not None
    assert reasoning.items_needed > 20


def test_the_first_batch_has_no_live_revision_and_no_earlier_facts(bench: Bench) -> None:
    report = bench.run(bench.request(live=None, earlier=()))
    assert report.verdict.outcome is Outcome.PASS, report.verdict.reasons
    assert [card.model for card in report.scorecards] == ["base", CANDIDATE.name]


@pytest.mark.parametrize("model", [BASE.name, CANDIDATE.name])
def test_an_item_without_an_answer_is_never_a_pass(bench: Bench, model: str) -> None:
    def fault(asked: str, prompt: str, _time: int) -> Exception | None:
        refused = asked == model and prompt.startswith("What is 7")
        return ServerRefused("the prompt is too long", status=400) if refused else None

    bench.server.fault = fault
    report = bench.run()
    assert report.verdict.outcome is Outcome.INCONCLUSIVE
    assert any("too long" in reason for reason in report.verdict.reasons)


def test_a_model_that_answers_nothing_is_never_a_pass(bench: Bench) -> None:
    for name in (BASE.name, LIVE.name, CANDIDATE.name):
        silent = ScriptedServer(bench.server.brains | {name: lambda _prompt: ""})
        bench.server = silent
        bench.answers = AnswerStore(bench.tmp_path / name)
        assert bench.run().verdict.outcome is not Outcome.PASS


def test_a_living_server_that_times_out_is_inconclusive(bench: Bench) -> None:
    bench.server.fault = unreachable
    assert bench.run().verdict.outcome is Outcome.INCONCLUSIVE


def test_a_dead_server_and_an_unserved_candidate_are_errors(bench: Bench) -> None:
    with pytest.raises(ModelNotServed, match="does not exist"):
        bench.run(bench.request(candidate=served("nobody")))
    bench.server.fault, bench.server.alive = unreachable, False
    with pytest.raises(ServerUnreachable):
        bench.run()


def test_a_grader_that_raises_is_inconclusive(bench: Bench) -> None:
    rows = [
        {"prompt": f"Say {n} aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "answer": "(a|aa)+b"} for n in range(3)
    ]
    bench.server.brains = dict.fromkeys(bench.server.brains, lambda p: "a" * 5000 + "c")
    bad = bench.suite("patterns", rows, grader="regex")
    report = bench.run(bench.request(suites=(bad,), facts=(), earlier=()))
    assert report.verdict.outcome is Outcome.INCONCLUSIVE
    assert any("grader 'regex' failed" in reason for reason in report.verdict.reasons)


def test_an_interrupted_evaluation_goes_on_where_it_was(bench: Bench) -> None:
    whole = Bench(bench.tmp_path / "whole")
    (bench.tmp_path / "whole").mkdir()
    expected = whole.run()

    def die(progress: Progress) -> None:
        if len(bench.progress) == 3:
            raise KeyboardInterrupt
        bench.progress.append(progress)

    async def first() -> None:
        await evaluate_candidate(bench.request(), bench.server, bench.answers, die)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(first())
    report = bench.run()
    assert report.verdict == expected.verdict
    assert bench.server.asked == whole.server.asked
    bench.server.asked.clear()
    assert bench.run().verdict == expected.verdict
    assert not bench.server.asked


def test_base_is_asked_once_and_again_when_the_suite_changes(bench: Bench) -> None:
    everything = bench.request(limits=PRESETS["strict"], facts=(), earlier=(), live=None)
    bench.run(everything)
    count = bench.server.count("base")
    bench.server.brains["other"] = right
    bench.run(everything.model_copy(update={"candidate": served("other")}))
    assert bench.server.count("base") == count
    bench.run(everything.model_copy(update={"candidate": served("other"), "order": "anew"}))
    assert count < bench.server.count("base") < count * 2
    bench.rows = [{**row, "id": row["prompt"]} for row in bench.rows]
    bench.server.asked.clear()
    bench.run(everything.model_copy(update={"suites": (bench.suite(),)}))
    assert bench.server.count("base") >= count / 2


def test_an_unstable_engine_is_told(bench: Bench) -> None:
    asked: dict[str, int] = {}

    def moody(prompt: str) -> str:
        asked[prompt] = asked.get(prompt, 0) + 1
        moods = zlib.crc32(prompt.encode()) % 3 == asked[prompt] % 3
        return "13 maybe" if moods else right(prompt)

    bench.server.brains["base"] = moody
    report = bench.run(bench.request(aa_sample=200))
    assert report.verdict.outcome is not Outcome.PASS
    assert any("unstable" in r or "has changed" in r for r in report.verdict.reasons)


def test_a_steady_engine_asked_twice_still_passes(bench: Bench) -> None:
    assert bench.run(bench.request(aa_sample=100)).verdict.outcome is Outcome.PASS


def test_a_suite_that_cannot_be_read_is_an_error_before_anything_is_asked(bench: Bench) -> None:
    with pytest.raises(BadSuite, match="empty"):
        bench.run(bench.request(suites=(bench.suite(rows=[]),)))
    assert not bench.server.asked


def test_a_suite_that_training_uses_is_an_error_before_anything_is_asked(bench: Bench) -> None:
    skill = bench.tmp_path / "skill.jsonl"
    skill.write_text(json.dumps({"prompt": bench.rows[5]["prompt"], "solution": "#### 10"}))
    with pytest.raises(BadSuite, match="used in training"):
        bench.run(bench.request(trained_on=(skill,)))
    assert not bench.server.asked


def test_progress_counts_up_and_counts_only_what_may_still_be_asked(bench: Bench) -> None:
    report = bench.run()
    done = [p.done for p in bench.progress]
    assert done == sorted(done)
    asked = sum(suite.items_used for suite in report.verdict.suites)
    assert asked < len(bench.rows) / 2, "the gate has ended early"
    timed = [p for p in bench.progress if p.seconds_left is not None]
    assert len(timed) >= len(bench.progress) / 2
    assert all(p.done <= p.total < 1.5 * asked for p in timed)
    assert timed[-1].total == timed[-1].done


def test_no_time_left_is_told_before_every_suite_has_an_answer(bench: Bench) -> None:
    bench.run()
    first = {p.stage: p for p in reversed(bench.progress)}
    assert [p.seconds_left for p in first.values()] == [None] * len(first)


def test_request_and_report_survive_json(bench: Bench) -> None:
    request = bench.request()
    assert EvaluationRequest.model_validate_json(request.model_dump_json()) == request
    report = bench.run()
    assert EvaluationReport.model_validate_json(report.model_dump_json()) == report


def test_limits_are_the_presets_unless_they_are_set() -> None:
    assert GateSettings().limits == PRESETS["balanced"]
    assert GateSettings(preset="strict").limits == PRESETS["strict"]
    mine = GateSettings(preset="fast", reasoning_margin=0.05, learnt_share=0.5).limits
    expected = {"reasoning_margin": 0.05, "learnt_share": 0.5}
    assert mine == PRESETS["fast"].model_copy(update=expected)
    assert GateSettings(retention_floor=0).limits.retention_floor is None


@pytest.mark.parametrize(
    ("role", "more"),
    [(Role.FACTS, {}), (Role.DRIFT, {"margin": 0.1}), (Role.DRIFT, {"task": "wikitext"})],
)
def test_what_no_suite_can_be_is_refused_when_it_is_read(role: Role, more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the suite"):
        SuiteSettings(name="s", role=role, path=Path("s.jsonl"), **more)
