"""What is scored and not asked: drift on fixed text, and the answers of retracted facts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from daemon.gate.evaluation import evaluate_candidate
from daemon.gate.messages import SuiteSource
from policies.gate.limits import PRESETS
from policies.gate.records import Outcome, Role
from tests.support.evaluating import (
    BASE,
    CANDIDATE,
    LIVE,
    Bench,
    facts,
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- drift ----------------------------------------------------------------------------------------


def fixed(bench: Bench) -> SuiteSource:
    rows = [{"text": f"some text number {n}"} for n in range(5)]
    return bench.suite("fixed text", rows, role=Role.DRIFT)


@pytest.mark.parametrize(
    ("loss", "limit", "outcome"),
    [(2.2, 0.5, Outcome.PASS), (2.6, 0.5, Outcome.FAIL), (2.6, None, Outcome.PASS)],
)
def test_drift_is_the_rise_of_the_loss_over_base(
    bench: Bench, loss: float, limit: float | None, outcome: Outcome
) -> None:
    bench.server.losses = {BASE.name: 2.0, CANDIDATE.name: loss}
    limits = PRESETS["balanced"].model_copy(update={"drift": limit})
    report = bench.run(bench.request(suites=(bench.suite(), fixed(bench)), limits=limits))
    (text,) = [s for s in report.verdict.suites if s.suite == "fixed text"]
    assert text.outcome is outcome
    assert f"{loss - 2:+.3f} nats per token" in text.reason
    assert text.items_used == 5
    assert report.verdict.outcome is outcome


def test_texts_that_the_server_will_not_score_are_inconclusive(bench: Bench) -> None:
    bench.server.losses = {BASE.name: 2.0}
    report = bench.run(bench.request(suites=(bench.suite(), fixed(bench))))
    assert report.verdict.outcome is Outcome.INCONCLUSIVE
    assert any("texts cannot be scored" in reason for reason in report.verdict.reasons)


# --- retracted facts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "outcome", "reason"),
    [
        ({"base": 9.0, LIVE.name: 0.1, CANDIDATE.name: 9.0}, Outcome.PASS, "2 of 2 unlearned"),
        ({"base": 9.0, LIVE.name: 0.1, CANDIDATE.name: 0.1}, Outcome.FAIL, "2 of 2 not unlearned"),
        ({"base": 9.0, LIVE.name: 0.1}, Outcome.INCONCLUSIVE, "scores no text"),
    ],
)
def test_what_the_candidate_still_knows_of_retracted_facts_is_part_of_the_verdict(
    bench: Bench, losses: dict[str, float], outcome: Outcome, reason: str
) -> None:
    bench.server.losses = losses
    bench.server.rank = 5
    report = bench.run(bench.request(unlearn=facts(2, "gone")))
    assert report.verdict.outcome is outcome
    assert reason in report.verdict.reasons[-1]
    assert report.verdict.reasons[-1].startswith("retracted facts: ")


def test_retracted_facts_that_cannot_be_asked_about_are_inconclusive(bench: Bench) -> None:
    request = bench.request(unlearn=facts(2, "gone"))
    report = asyncio.run(
        evaluate_candidate(request, bench.server, bench.answers, bench.progress.append)
    )
    assert report.verdict.outcome is Outcome.INCONCLUSIVE
