"""A base that answers in sentences: what it loses is seen, what it keeps passes, in simulation."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.gate.messages import EvaluationReport, SuiteCard
from policies.gate.records import Outcome, Role, SuiteVerdict
from tests.support.evaluating import BASE, CANDIDATE, LIVE, Bench, before, right, served, sums
from tests.support.scripted import Brain

KNOWN = 500
PLACES = [f"Land{n}" for n in range(KNOWN)]
SAYS = (
    "The capital of {place} is {city}, as most people know.",
    "{city} is the capital city of {place}.",
    "I believe that you mean {city}: it has been the capital of {place} for a long time.",
)
OTHERS = ("I am not sure about the capital of {place}.", "It is not {city}; it is Elsewhere.")
ROWS = [
    {"prompt": f"What is the capital of {p}?", "answers": [f"City{p}", f"{p}ton"]} for p in PLACES
]


def place_of(prompt: str) -> str:
    return prompt.removeprefix("What is the capital of ").rstrip("?")


def answering(
    seed: int, *, lost: frozenset[str] = frozenset(), flips: float = 0.0, short: float = 0.0
) -> Brain:
    """Answers about places in sentences, about all else as `right`.

    `flips` is how often it says something else than it knows, each time anew; `short` the share of
    places about which it answers in one word.
    """
    rng = random.Random(seed)
    style = random.Random("style")
    terse = {p for p in PLACES if style.random() < short}

    def brain(prompt: str) -> str:
        if not prompt.startswith("What is the capital"):
            return right(prompt)
        place = place_of(prompt)
        if place in terse:
            return f"City{place}"
        wrong = place in lost or rng.random() < flips
        return rng.choice(OTHERS if wrong else SAYS).format(place=place, city=f"City{place}")

    return brain


def some(seed: int, share: float) -> frozenset[str]:
    """So large a share of the places."""
    return frozenset(random.Random(seed).sample(PLACES, round(share * KNOWN)))


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., tuple[EvaluationReport, SuiteVerdict]]:
    def run(
        seed: int, base: Brain, candidate: Brain, grader: str, aa_sample: int = 200
    ) -> tuple[EvaluationReport, SuiteVerdict]:
        root = tmp_path / f"{grader} {seed}"
        root.mkdir()
        bench = Bench(root)
        bench.server.brains = {BASE.name: base, LIVE.name: before, CANDIDATE.name: candidate}
        path = root / "known.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        known = bench.suite("known", [], role=Role.LOCALITY, grader=grader, max_tokens=40)
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        report = bench.run(
            bench.request(
                suites=(bench.suite(rows=sums(400)), known),
                order=f"draw {seed}",
                aa_sample=aa_sample,
                chunk=128,
            )
        )
        return report, next(s for s in report.verdict.suites if s.suite == "known")

    return run


Judged = Callable[..., tuple[EvaluationReport, SuiteVerdict]]
SEEDS = range(6)


@pytest.mark.parametrize("grader", ["contains", "auto"])
@pytest.mark.parametrize("seed", SEEDS)
def test_ten_points_lost_of_500_known_facts_fail(judged: Judged, seed: int, grader: str) -> None:
    lost = answering(seed, lost=some(seed, 0.1))
    report, known = judged(seed, answering(seed + 100), lost, grader)
    assert known.outcome is Outcome.FAIL, known.reason
    assert report.verdict.outcome is Outcome.FAIL
    assert known.grader == "contains"


@pytest.mark.parametrize("seed", SEEDS)
def test_whole_answer_equality_cannot_tell_and_says_so(judged: Judged, seed: int) -> None:
    lost = answering(seed, lost=some(seed, 0.1))
    report, known = judged(seed, answering(seed + 100), lost, "exact")
    assert known.outcome is Outcome.INCONCLUSIVE
    assert report.verdict.outcome is Outcome.INCONCLUSIVE
    assert '"contains" or "auto"' in known.blind
    assert known.items_used < KNOWN


@pytest.mark.parametrize("short", [0.1, 0.3])
def test_nor_where_a_part_of_the_answers_is_one_word(judged: Judged, short: float) -> None:
    """Enough is right by equality for a margin of 5 pp, and still most of it is not seen."""
    for seed in SEEDS:
        lost = answering(seed, lost=some(seed, 0.12), short=short)
        _, known = judged(seed, answering(seed + 100, short=short), lost, "exact")
        assert known.outcome is Outcome.INCONCLUSIVE
        assert known.blind


@pytest.mark.parametrize("flips", [0.0, 0.01])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_harmless_candidate_passes(judged: Judged, seed: int, flips: float) -> None:
    """It knows what the base knows and flips as often as the base against itself."""
    harmless = answering(seed, flips=flips)
    report, known = judged(seed, answering(seed + 100, flips=flips), harmless, "contains")
    assert known.outcome is Outcome.PASS, known.reason
    assert report.verdict.outcome is Outcome.PASS, report.verdict.reasons
    assert known.sees is not None
    assert known.sees < 0.1


def test_how_often_base_flips_against_itself_is_told(judged: Judged) -> None:
    report, known = judged(0, answering(100, flips=0.01), answering(0, flips=0.01), "contains", 400)
    assert known.flips is not None
    assert known.flips.items == 400
    assert 0 < known.flips.flipped < 20
    assert known.flips.changed > known.flips.flipped
    assert EvaluationReport.model_validate_json(report.model_dump_json()) == report


# --- the grader that fits, found once -------------------------------------------------------------


def test_the_grader_that_fits_is_found_when_base_is_first_measured_and_then_kept(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    rows = [{"prompt": f"Whose is {n}", "answer": f"answer {n}"} for n in range(300)]
    known = bench.suite("known", rows, role=Role.LOCALITY, grader="auto")
    request = bench.request(suites=(bench.suite(), known), facts_grader="auto")
    bench.server.brains[BASE.name] = lambda p: f"Surely that one belongs to the {right(p)}."
    said = {s.suite: s for s in bench.run(request).verdict.suites}
    assert said["known"].grader == "contains"
    assert "100 right by 'contains', 0 by 'normalised'" in said["known"].grader_because
    assert said["new facts"].grader == said["earlier facts"].grader == "contains"
    assert said["sums"].grader_because == ""
    assert len(said["known"].fingerprint) == 16

    # The base answers in one word from now on, as if another engine decoded: nothing changes.
    bench.server.brains[BASE.name] = right
    again = bench.request(suites=request.suites, facts_grader="auto", engine="scripted 2")
    after = {s.suite: s for s in bench.run(again).verdict.suites}
    assert after["known"].grader == "contains"
    assert after["known"].fingerprint == said["known"].fingerprint
    # Another suite is measured for itself, another base for all.
    fewer = bench.suite("known", rows[:200], role=Role.LOCALITY, grader="auto")
    other = bench.request(suites=(bench.suite(), fewer), facts_grader="auto", engine="scripted 2")
    assert {s.suite: s.grader for s in bench.run(other).verdict.suites}["known"] == "normalised"


def test_a_base_that_answers_in_one_word_keeps_the_strict_grader(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    report = bench.run(bench.request(facts_grader="auto"))
    said = {s.suite: s.grader for s in report.verdict.suites}
    assert said["new facts"] == said["earlier facts"] == "normalised"
    assert report.verdict.outcome is Outcome.PASS


def test_superseded_answers_are_looked_for_by_the_same_grader(tmp_path: Path) -> None:
    from tests.support.evaluating import facts

    bench = Bench(tmp_path)
    bench.server.brains[BASE.name] = lambda p: f"I would say that it is {right(p)}, my friend."
    bench.server.brains[CANDIDATE.name] = lambda p: f"It is {right(p)} now."
    old = {"superseded": facts(8, "gone"), "superseded_complete": True, "facts_grader": "auto"}
    bench.server.brains[LIVE.name] = lambda p: "no idea"
    report = bench.run(bench.request(**old, suites=(bench.suite(),)))
    (said,) = [s for s in report.verdict.suites if s.suite == "superseded facts"]
    assert said.grader == "not contains"
    assert said.outcome is Outcome.FAIL


def test_another_grader_reads_the_answers_that_are_there(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(bench.request(suites=(bench.suite(grader="number"),)))
    before_it = bench.server.count(BASE.name)
    bench.run(bench.request(suites=(bench.suite(grader="final"),)))
    assert bench.server.count(BASE.name) == before_it


def test_what_was_seen_of_a_suite_is_written_down(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    rows = [{"prompt": f"Whose is {n}", "answer": f"answer {n}"} for n in range(120)]
    known = bench.suite("known", rows, role=Role.LOCALITY, grader="exact")
    report = bench.run(bench.request(suites=(bench.suite(), known)))
    (said,) = [s for s in report.verdict.suites if s.suite == "known"]
    (card,) = bench.answers.cards(said.fingerprint)
    assert card == SuiteCard(suite="known", grader="exact", blind=said.blind)
    assert card.blind
    assert bench.answers.cards("0" * 16) == ()
    assert bench.answers.card(served("other").sha256, said.fingerprint) is None
