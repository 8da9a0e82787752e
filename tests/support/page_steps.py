"""Worker steps with verdicts as the real gate writes them: suites, intervals, items, scorecards."""

from __future__ import annotations

import math
import random
import time
from typing import Any

from daemon.children.jobs import Progress
from daemon.children.worker import StepContext
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.training.messages import TrainDone, TrainRequest
from policies.gate.records import (
    FailedItem,
    ItemResult,
    Outcome,
    Rate,
    Role,
    Scorecard,
    SuiteScore,
    SuiteVerdict,
    Verdict,
)
from policies.records import Fact
from tests.support import fake_steps
from tests.support.fake_steps import probe

__all__ = ["evaluate", "probe", "question", "train"]

CAPITALS = {
    **{"Bhutan": "Thimphu", "Nepal": "Kathmandu", "Laos": "Vientiane", "Mongolia": "Ulaanbaatar"},
    **{"Uganda": "Kampala", "Rwanda": "Kigali", "Malawi": "Lilongwe", "Zambia": "Lusaka"},
    **{"Peru": "Lima", "Ecuador": "Quito", "Bolivia": "Sucre", "Chile": "Santiago"},
    **{"Estonia": "Tallinn", "Latvia": "Riga", "Norway": "Oslo", "Iceland": "Reykjavík"},
    **{"Fiji": "Suva", "Samoa": "Apia", "Tonga": "Nukuʻalofa", "Palau": "Ngerulmud"},
    "Atlantis (false)": "Poseidonis",
    "Utopia (unsure)": "Amaurot",
    "Lemuria (slow)": "Mu",
}
QUESTIONS = {f"the capital of {country}": city for country, city in CAPITALS.items()}


def question(country: str) -> dict[str, Any]:
    """The line of one fact."""
    return {
        "prompt": f"What is the capital of {country}?",
        "answer": CAPITALS[country],
        "subject": country,
        "relation": "capital",
        "eval_prompts": [f"Name the capital of {country}."],
        "source": "gazetteer",
    }


def train(desk: StepContext) -> TrainDone:
    """As the others train; "(slow)" takes half a minute, and tells how far it is."""
    request = TrainRequest.model_validate_json(desk.request)
    if any("(slow)" in fact.prompt for fact in request.facts):
        for step in range(140, 540):
            loss, left = 2.0 / (1 + step / 60), (540 - step) * 0.075
            desk.progress(
                Progress(stage="step", done=step, total=540, loss=loss, seconds_left=left)
            )
            time.sleep(0.075)
    return fake_steps.train(desk)


def evaluate(desk: StepContext) -> EvaluationReport:
    """ "(false)" loses reasoning and fails, "(unsure)" cannot be told; all else passes."""
    request = JudgingRequest.model_validate_json(desk.request)
    asked = request.evaluation
    fake_steps.work(desk)
    draw = random.Random(asked.candidate.name)
    prompts = " ".join(fact.prompt for fact in asked.facts)
    false, unsure = "(false)" in prompts, "(unsure)" in prompts
    wobble = 0.79 + draw.randrange(6) / 200
    failing = _lost(draw, 14 if false else 2)
    earlier = tuple(fact for _, fact in asked.earlier)
    suites = (
        _suite(
            "word problems", Role.REASONING, 400, (0.81, 0.80, 0.72 if false else wobble), failing
        ),
        _suite("known facts", Role.LOCALITY, 240, (0.96, 0.94, 0.94 - draw.randrange(4) / 200)),
        _suite("new facts", Role.FACTS, 2 * len(asked.facts), (0.02, 0.03, 0.97)),
        *(
            [_suite("earlier facts", Role.RETENTION, len(earlier), (0.03, 0.95, 0.93))]
            * bool(earlier)
        ),
    )
    outcome = Outcome.FAIL if false else Outcome.INCONCLUSIVE if unsure else Outcome.PASS
    suites = (_judged(suites[0], outcome), *suites[1:])
    verdict = Verdict(
        outcome=outcome,
        rule="balanced: every suite non-inferior to base and live",
        reasons=(suites[0].reason,) if outcome is not Outcome.PASS else (),
        suites=suites,
        learnt=tuple(fact.id for fact in asked.facts),
    )
    cards = tuple(
        _card(served.name, served.sha256 or "", who, draw, failing, asked.facts, earlier)
        for who, served in (("base", asked.base), ("live", asked.live), ("new", asked.candidate))
        if served is not None
    )
    return EvaluationReport(verdict=verdict, scorecards=cards, seconds={})


def _rate(share: float, items: int) -> Rate:
    """Wilson's interval."""
    z2, n = 1.96**2, max(1, items)
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = 1.96 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Rate(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half), items=n)


def _suite(
    name: str,
    role: Role,
    items: int,
    shares: tuple[float, float, float],
    failing: tuple[FailedItem, ...] = (),
) -> SuiteVerdict:
    base, live, candidate = (_rate(share, items) for share in shares)
    return SuiteVerdict(
        suite=name,
        role=role,
        outcome=Outcome.PASS,
        reason=f"non-inferior to live: margin 5 pp, n = {items}",
        grader="normalised",
        sees=0.021,
        sees_items=items,
        base=base,
        live=live,
        candidate=candidate,
        items_used=items,
        newly_failing=failing,
        newly_passing=len(failing) // 2,
    )


def _judged(suite: SuiteVerdict, outcome: Outcome) -> SuiteVerdict:
    reason = {
        Outcome.FAIL: "worse than live by 8.0 pp: margin 2 pp, n = 400",
        Outcome.INCONCLUSIVE: "cannot tell yet: margin 2 pp, n = 400; 900 items would",
    }.get(outcome, suite.reason)
    return suite.model_copy(update={"outcome": outcome, "reason": reason})


def _lost(draw: random.Random, count: int) -> tuple[FailedItem, ...]:
    lost = []
    for number in range(count):
        one, other = draw.randrange(12, 90), draw.randrange(3, 40)
        right = one - other
        lost.append(
            FailedItem(
                item=f"p{number}",
                prompt=f"Ana has {one} apples and gives {other} away. How many are left?",
                expected=str(right),
                was=f"{one} - {other} = {right}. The answer is {right}.",
                now=f"{one} + {other} = {one + other}. The answer is {one + other}.",
            )
        )
    return tuple(lost)


def _card(
    name: str,
    sha256: str,
    who: str,
    draw: random.Random,
    failing: tuple[FailedItem, ...],
    facts: tuple[Fact, ...],
    earlier: tuple[Fact, ...],
) -> Scorecard:
    words = tuple(
        ItemResult(
            id=item.item, correct=who != "new", output=item.now if who == "new" else item.was
        )
        for item in failing
    )
    chance = {"base": 0.02, "live": 0.95}.get(who, 0.93)

    def asked(some: tuple[Fact, ...], share: float) -> tuple[ItemResult, ...]:
        return tuple(
            ItemResult(id=f"{fact.id}#0", correct=draw.random() < share, output=fact.answer)
            for fact in some
        )

    scores = (
        ("word problems", Role.REASONING, words),
        ("new facts", Role.FACTS, asked(facts, 0.98 if who == "new" else 0.03)),
        ("earlier facts", Role.RETENTION, asked(earlier, chance)),
    )
    return Scorecard(
        model=name,
        sha256=sha256 or name,
        suites=tuple(
            SuiteScore(suite=suite, role=role, fingerprint="f", results=results)
            for suite, role, results in scores
            if results
        ),
    )
