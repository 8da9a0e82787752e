"""Every way to pass on nothing, through the real evaluation: none of them passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.gate.messages import ServedModel
from daemon.serving.protocol import ServerRefused
from policies.gate.records import Outcome, Role
from tests.support.evaluating import (
    BASE,
    CANDIDATE,
    LIVE,
    Bench,
    before,
    facts,
    outcomes,
    right,
    wrong_when,
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_candidate_whose_adapter_was_not_applied_never_passes(bench: Bench) -> None:
    """The server answers for live in its name, and live happens to know the new facts."""
    bench.server.brains[LIVE.name] = right
    report = bench.run()
    assert {s.outcome for s in report.verdict.suites} == {Outcome.PASS}
    assert report.verdict.outcome is Outcome.INCONCLUSIVE
    assert "was its adapter applied?" in report.verdict.reasons[-1]


@pytest.mark.parametrize("twin", [BASE, LIVE])
def test_a_candidate_of_the_same_weights_is_not_judged_by_its_own_answers(
    bench: Bench, twin: ServedModel
) -> None:
    same = CANDIDATE.model_copy(update={"sha256": twin.sha256})
    report = bench.run(bench.request(candidate=same))
    assert report.verdict.outcome is not Outcome.PASS
    assert "itself, by its name or its weights" in " ".join(report.verdict.reasons)


def test_a_pattern_that_takes_anything_is_no_suite(bench: Bench) -> None:
    rows = [{"prompt": f"Whose is {n}", "answer": ".+"} for n in range(300)]
    known = bench.suite("known", rows, role=Role.LOCALITY, grader="regex")
    report = bench.run(bench.request(suites=(bench.suite(), known)))
    assert outcomes(report)["known"] is Outcome.INCONCLUSIVE
    assert "100.0 % with its answers to other questions" in " ".join(report.verdict.reasons)


def test_a_suite_of_one_answer_is_no_suite(bench: Bench) -> None:
    rows = [{"prompt": f"Is it {n}", "answer": "yes"} for n in range(300)]
    known = bench.suite("known", rows, role=Role.LOCALITY, grader="contains")
    for name in (BASE.name, CANDIDATE.name):
        brain = bench.server.brains[name]
        bench.server.brains[name] = lambda p, brain=brain: "Yes." if "Is it" in p else brain(p)
    report = bench.run(bench.request(suites=(bench.suite(), known)))
    assert outcomes(report)["known"] is Outcome.INCONCLUSIVE


def test_answers_that_are_all_cut_off_prove_nothing(bench: Bench) -> None:
    bench.server.cut = lambda prompt: "+" in prompt
    report = bench.run()
    assert outcomes(report)["sums"] is Outcome.INCONCLUSIVE
    assert "were cut off before their end; raise max_tokens" in " ".join(report.verdict.reasons)
    told = bench.run(bench.request(suites=(bench.suite(grader="contains"),)))
    assert outcomes(told)["sums"] is Outcome.PASS


def test_saying_nothing_lets_go_of_no_superseded_answer(bench: Bench) -> None:
    bench.server.brains[LIVE.name] = wrong_when(lambda p: "gone" in p, before)
    silent = bench.server.brains[CANDIDATE.name]
    bench.server.brains[CANDIDATE.name] = lambda p: "" if "gone 1" in p else silent(p)
    old = {"superseded": facts(30, "gone"), "superseded_complete": True}
    report = bench.run(bench.request(**old, suites=(bench.suite(),)))
    assert outcomes(report)["superseded facts"] is Outcome.FAIL


def test_a_base_that_cannot_be_asked_twice_is_no_pass(bench: Bench) -> None:
    def once(asked: str, prompt: str, time: int) -> Exception | None:
        again = asked == BASE.name and "+" in prompt and time > 1
        return ServerRefused("not again", status=400) if again else None

    bench.server.fault = once
    report = bench.run(bench.request(aa_sample=20))
    assert outcomes(report)["sums"] is Outcome.INCONCLUSIVE
    assert "base could not be asked twice" in " ".join(report.verdict.reasons)


def test_any_of_several_answers_is_right(bench: Bench) -> None:
    rows = [{"prompt": f"Whose is {n}", "answers": ["nobody's", f"answer {n}"]} for n in range(200)]
    known = bench.suite("known", [], role=Role.LOCALITY, grader="normalised")
    assert known.path is not None
    known.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench.server.brains[BASE.name] = lambda p: "nobody's" if p.endswith("7") else right(p)
    report = bench.run(bench.request(suites=(bench.suite(), known)))
    assert outcomes(report)["known"] is Outcome.PASS
    (said,) = [s for s in report.verdict.suites if s.suite == "known"]
    assert said.base is not None
    assert said.base.value == 1.0
