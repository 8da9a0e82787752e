"""The evaluation step as a leased child does it: over HTTP, with every kind of evidence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from daemon.children.jobs import Progress
from daemon.children.worker import StepContext
from daemon.gate.child import evaluate
from daemon.gate.messages import EvaluationRequest, JudgingRequest, ServedModel, SuiteSource
from policies.gate.limits import PRESETS
from policies.gate.records import Outcome, Role
from policies.records import Fact
from tests.support.live import Live


class StubDesk(StepContext):
    """A desk without a directory: the request, and what progress was reported."""

    request = ""

    def __init__(self, request: JudgingRequest) -> None:
        self.request = request.model_dump_json()
        self.reported: list[Progress] = []

    def progress(self, progress: Progress) -> None:
        self.reported.append(progress)


def base(sha256: str) -> ServedModel:
    return ServedModel(name="base", sha256=hashlib.sha256(sha256.encode()).hexdigest())


def source(path: Path, role: Role, rows: Sequence[Mapping[str, str]]) -> SuiteSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SuiteSource(name=path.stem, role=role, path=path, grader="number", max_tokens=4)


def test_answers_drift_and_retracted_facts_come_into_one_verdict(
    site: Live, tmp_path: Path
) -> None:
    """The candidate is base itself under another hash: nothing is lost or given away, and that is
    no pass.
    """
    sums = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(12)]
    texts = [{"text": f"Rain fell on day {n}."} for n in range(3)]
    request = JudgingRequest(
        evaluation=EvaluationRequest(
            engine=site.kind,
            base=base("base"),
            live=None,
            candidate=base("candidate"),
            order="drawn once",
            suites=(
                source(tmp_path / "sums.jsonl", Role.REASONING, sums),
                source(tmp_path / "texts.jsonl", Role.DRIFT, texts),
            ),
            unlearn=(Fact(id="f", prompt="The capital of Bhutan is", answer="Thimphu"),),
            chat=False,
            limits=PRESETS["balanced"].model_copy(update={"drift": 0.5}),
        ),
        url=site.url,
        admin_key_file=site.settings.layout.admin_key,
        answers=tmp_path / "answers",
        model_dir=site.model_dir,
    )
    desk = StubDesk(request)
    report = evaluate(desk)
    assert desk.reported
    reasoning, drift = report.verdict.suites
    assert reasoning.base == reasoning.candidate
    assert reasoning.items_used == 12
    assert drift.outcome is not Outcome.FAIL
    assert "the candidate is base itself" in " ".join(report.verdict.reasons)
    (fact,) = report.verdict.unlearning
    assert fact.holds
    assert fact.base.probability == pytest.approx(fact.candidate.probability, abs=0.02)
    assert report.verdict.reasons[-1] == "retracted facts: 1 of 1 unlearned"
    assert report.verdict.outcome is Outcome.INCONCLUSIVE
