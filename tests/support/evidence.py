"""Evidence for the gate: suites whose answers are given by a function of the item's number."""

from __future__ import annotations

from collections.abc import Callable

from policies.gate.evidence import Evidence, SuiteEvidence, SuiteQuestions
from policies.gate.limits import PRESETS, GateLimits
from policies.gate.records import (
    ItemResult,
    Outcome,
    Role,
    SuiteItem,
    SuiteScore,
    SuiteVerdict,
    Verdict,
)
from policies.gate.stability import Stability
from policies.gate.verdict import judge

LIMITS = PRESETS["balanced"]
RANK = {Outcome.FAIL: 0, Outcome.INCONCLUSIVE: 1, Outcome.PASS: 2}
FINGERPRINT = "f" * 16


def questions(
    role: Role = Role.REASONING,
    count: int = 800,
    *,
    name: str | None = None,
    strata: int = 0,
    margin: float | None = None,
) -> SuiteQuestions:
    return SuiteQuestions(
        suite=name or role.value,
        role=role,
        fingerprint=FINGERPRINT,
        margin=margin,
        items=tuple(
            SuiteItem(
                id=f"{role.value}-{n}",
                prompt=f"question {n}",
                answer=f"answer {n}",
                stratum=f"batch {n % strata}" if strata else "",
            )
            for n in range(count)
        ),
    )


def score(
    asked: SuiteQuestions,
    right: Callable[[int], bool],
    only: int | None = None,
    said: str = "said",
) -> SuiteScore:
    results = [
        ItemResult(id=item.id, correct=right(n), output=f"{said} {n} {right(n)}")
        for n, item in enumerate(asked.items[:only])
    ]
    return SuiteScore(
        suite=asked.suite, role=asked.role, fingerprint=asked.fingerprint, results=tuple(results)
    )


def always(_: int) -> bool:
    return True


def suite(
    asked: SuiteQuestions,
    candidate: Callable[[int], bool] = always,
    base: Callable[[int], bool] = always,
    live: Callable[[int], bool] | None = None,
    aa: Stability | None = None,
) -> SuiteEvidence:
    return SuiteEvidence(
        questions=asked,
        candidate=score(asked, candidate, said="says"),
        base=score(asked, base),
        live=score(asked, live) if live else None,
        stability=aa,
    )


def evidence(*suites: SuiteEvidence, live: str | None = None, seed: str = "c0ffee") -> Evidence:
    return Evidence(seed=seed, live=live, suites=suites)


def verdict(
    *suites: SuiteEvidence, live: str | None = None, limits: GateLimits = LIMITS
) -> Verdict:
    return judge(evidence(*suites, live=live), limits)


def only(said: Verdict) -> SuiteVerdict:
    assert len(said.suites) == 1
    return said.suites[0]


REASONING = suite(questions())


def facts(learnt: int, count: int = 20, paraphrases: int = 2) -> SuiteEvidence:
    asked = SuiteQuestions(
        suite="new facts",
        role=Role.FACTS,
        fingerprint=FINGERPRINT,
        items=tuple(
            SuiteItem(id=f"fact{n:02}#{w}", prompt=f"{n}/{w}?", answer="yes", stratum=f"fact{n:02}")
            for n in range(count)
            for w in range(paraphrases)
        ),
    )
    return suite(asked, candidate=lambda at: at // paraphrases < learnt)
