"""The gate's verdict on a candidate: pass, fail or inconclusive, and why.

A candidate passes when every suite passes. Worse by the margin on any one suite, it must get past
that suite's own test at alpha, so alpha needs no correction for several suites (an
intersection-union test: Berger, Technometrics 24, 1982). It fails when any test fails, so each of
the k tests gets beta / k (Bonferroni), and a candidate that lost nothing is failed with
probability beta at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from policies.gate.baselines import PAIRED, baselines
from policies.gate.blindness import hopeless
from policies.gate.coverage import gaps
from policies.gate.evidence import Evidence, SuiteEvidence, by_item, problem, rate
from policies.gate.figures import limit, percent, pp
from policies.gate.limits import GateLimits
from policies.gate.paired import ROUNDING, inconclusive, judge_paired, together
from policies.gate.records import (
    ItemResult,
    Outcome,
    Role,
    SuiteItem,
    SuiteVerdict,
    UnlearningResult,
    Verdict,
)
from policies.gate.sampling import draw_order
from policies.gate.unlearning import judge_unlearning
from policies.records import Record

CHUNK: Final = 64
RETRACTED: Final = "retracted facts"


def judge(evidence: Evidence, limits: GateLimits) -> Verdict:
    """The verdict on what has been measured so far; what is missing never passes."""
    suites = _judge_suites(evidence, limits)
    reasons = [f"{suite.suite}: {_said(suite, limits)}" for suite in suites]
    outcomes = {suite.outcome for suite in suites if not _only_warned(suite, limits)}
    found = gaps(evidence, suites, limits)
    reasons += [f"warning: {gap.reason}" if gap.warning else gap.reason for gap in found]
    if not all(gap.warning for gap in found):
        outcomes.add(Outcome.INCONCLUSIVE)
    outcome = together(outcomes)
    unlearning: tuple[UnlearningResult, ...] = ()
    if evidence.unlearning is not None:
        unlearned, reason, unlearning = judge_unlearning(evidence.unlearning, limits.unlearning)
        outcome = together({outcome, unlearned})
        reasons.append(f"{RETRACTED}: {reason}")
    learnt, not_learnt = _learning(evidence, limits)
    return Verdict(
        outcome=outcome,
        rule=rule(limits),
        reasons=tuple(reasons),
        suites=suites,
        learnt=learnt,
        not_learnt=not_learnt,
        unlearning=unlearning,
    )


class NextRound(Record):
    """What to ask next: `items` by suite, of which `left` may be asked in all, these included.

    `left` supposes a candidate that has lost nothing; one that has may take more or fewer. Where a
    suite has no answer yet it is a bound, and not `estimated`.
    """

    items: Mapping[str, tuple[str, ...]]
    left: Mapping[str, int]
    estimated: bool = True


def next_items(
    evidence: Evidence, limits: GateLimits, *, chunk: int = CHUNK
) -> Mapping[str, tuple[str, ...]]:
    """The items to ask the candidate next, by suite."""
    return next_round(evidence, limits, chunk=chunk).items


def next_round(evidence: Evidence, limits: GateLimits, *, chunk: int = CHUNK) -> NextRound:
    """The items to ask the candidate next; nothing once a drop is shown.

    A candidate that did not learn enough has failed, but is still asked about reasoning: its
    verdict is to say whether the batch did harm, too.

    All new facts come at once, every other undecided suite in its drawn order, at least `chunk`
    items at a time. Whoever the candidate is compared with must answer the same items. A suite with
    an obstacle, on which some model stays silent, or of which no baseline can do anything, can no
    longer pass and is left alone.
    """
    judged = list(zip(evidence.asked, _judge_suites(evidence, limits), strict=True))
    failed = {s.questions.role for s, verdict in judged if verdict.outcome is Outcome.FAIL}
    wanted: dict[str, tuple[str, ...]] = {}
    left: dict[str, int] = {}
    estimated = True
    if failed - {Role.FACTS}:
        return NextRound(items=wanted, left=left)
    for suite, verdict in judged:
        asked = suite.questions
        if failed and asked.role is not Role.REASONING:
            continue
        if verdict.outcome is not Outcome.INCONCLUSIVE or asked.role is Role.DRIFT:
            continue
        if suite.obstacle or suite.silent or _hopeless(suite, evidence):
            continue
        undrawn = _undrawn(suite, evidence.seed, None)
        facts = asked.role is Role.FACTS
        if items := undrawn if facts else _undrawn(suite, evidence.seed, chunk):
            wanted[asked.suite] = items
            needed = verdict.items_needed
            more = len(undrawn) if needed is None else needed - verdict.items_used
            left[asked.suite] = min(len(undrawn), max(more, len(items)))
            estimated &= facts or len(undrawn) < len(asked.items)
    return NextRound(items=wanted, left=left, estimated=estimated)


def rule(limits: GateLimits) -> str:
    """What the gate does, in one sentence."""
    return (
        f"A candidate passes if it is non-inferior (error at most {limit(limits.alpha)}) to base "
        f"and live on reasoning (margin {pp(limits.reasoning_margin)}), to live on earlier facts "
        f"({pp(limits.retention_margin)}) and to base on known facts "
        f"({pp(limits.locality_margin)}), and at least {limit(limits.learnt_share)} of the new "
        "facts are learnt; it fails if it is inferior, which is found of a harmless one with "
        f"probability {limit(limits.beta)} at most; else more items or a person decide."
    )


# --- suites --------------------------------------------------------------------------------------


def _judge_suites(evidence: Evidence, limits: GateLimits) -> tuple[SuiteVerdict, ...]:
    beta = limits.beta / max(1, _tests(evidence, limits))
    return tuple(_judge_suite(suite, evidence, limits, beta) for suite in evidence.asked)


def _judge_suite(
    suite: SuiteEvidence, evidence: Evidence, limits: GateLimits, beta: float
) -> SuiteVerdict:
    """What the answers say; a suite that could not be measured in full never passes."""
    asked = suite.questions
    verdict = _judge_answers(suite, evidence, limits, beta).model_copy(
        update={
            "fingerprint": asked.fingerprint,
            "grader": asked.grader,
            "grader_because": asked.grader_because,
            "flips": suite.stability.told if suite.stability else None,
        }
    )
    remarks = [remark for remark in (suite.obstacle, _left_out(suite)) if remark]
    if not remarks:
        return verdict
    doubtful = suite.obstacle and verdict.outcome is Outcome.PASS
    return verdict.model_copy(
        update={
            "outcome": Outcome.INCONCLUSIVE if doubtful else verdict.outcome,
            "reason": "; ".join((verdict.reason, *remarks)),
        }
    )


def _judge_answers(
    suite: SuiteEvidence, evidence: Evidence, limits: GateLimits, beta: float
) -> SuiteVerdict:
    asked = suite.questions
    if asked.role is Role.DRIFT:
        return _judge_drift(suite, limits)
    compared = baselines(asked.role, live=evidence.live is not None)
    if found := problem(suite, ("candidate", *compared)):
        return inconclusive(asked, found)
    if asked.role is Role.FACTS:
        return _judge_facts(suite, limits)
    if not compared and limits.retention_floor is None:
        return inconclusive(asked, "there is no live revision and no floor to compare with")
    return judge_paired(suite, evidence.seed, compared, limits, beta)


def _judge_facts(suite: SuiteEvidence, limits: GateLimits) -> SuiteVerdict:
    asked = suite.questions
    answers = by_item(suite.candidate)
    missing = [item.id for item in asked.items if item.id not in answers]
    if missing:
        return inconclusive(asked, f"{len(missing)} of {len(asked.items)} questions unanswered")
    known = _learnt(asked.items, answers, limits.paraphrase_share)
    count, share = sum(known.values()), sum(known.values()) / len(known)
    enough = share >= limits.learnt_share - ROUNDING
    return SuiteVerdict(
        suite=asked.suite,
        role=asked.role,
        outcome=Outcome.PASS if enough else Outcome.FAIL,
        reason=f"{count} of {len(known)} facts learnt ({percent(share)}); "
        f"at least {limit(limits.learnt_share)} required",
        candidate=rate(asked.items, answers),
        items_used=len(asked.items),
    )


def _judge_drift(suite: SuiteEvidence, limits: GateLimits) -> SuiteVerdict:
    if suite.drift is None or math.isnan(suite.drift) or suite.drift == -math.inf:
        return inconclusive(suite.questions, "the drift was not measured")
    if suite.drift == 0:
        why = "base and candidate lose the same to the last digit: was the adapter applied?"
        found = inconclusive(suite.questions, f"blind: {why}")
        return found.model_copy(update={"blind": why})
    allowed = limits.drift
    outcome = Outcome.FAIL if allowed is not None and suite.drift > allowed else Outcome.PASS
    bound = f"at most {allowed:+.3f} allowed" if allowed is not None else "no limit set"
    return SuiteVerdict(
        suite=suite.questions.suite,
        role=Role.DRIFT,
        outcome=outcome,
        reason=f"loss on fixed text: Δ = {suite.drift:+.3f} nats per token; {bound}",
        items_used=len(suite.questions.items),
    )


def _hopeless(suite: SuiteEvidence, evidence: Evidence) -> bool:
    role = suite.questions.role
    if role not in (Role.REASONING, Role.LOCALITY):
        return False
    return hopeless(suite, baselines(role, live=evidence.live is not None))


def _only_warned(suite: SuiteVerdict, limits: GateLimits) -> bool:
    """Whether the suite counts for nothing: it is blind, and that is only to be said."""
    blind = bool(suite.blind) and suite.outcome is Outcome.INCONCLUSIVE
    return blind and limits.blind_suites == "warn"


def _said(suite: SuiteVerdict, limits: GateLimits) -> str:
    return f"warning: {suite.reason}" if _only_warned(suite, limits) else suite.reason


def _left_out(suite: SuiteEvidence) -> str:
    count = suite.questions.left_out
    return f"{count} questions left out: facts have changed their answers" if count else ""


# --- parts of the decision ---------------------------------------------------------------------


def _tests(evidence: Evidence, limits: GateLimits) -> int:
    """How many tests can fail a candidate that lost nothing: beta is shared out over them."""
    count = 0
    for suite in evidence.asked:
        asked = suite.questions
        if asked.role in PAIRED:
            watched = 2 if any(item.stratum for item in asked.items) else 1
            count += watched * len(baselines(asked.role, live=evidence.live is not None))
            count += asked.role is Role.RETENTION and limits.retention_floor is not None
    return count


def _learning(evidence: Evidence, limits: GateLimits) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The new facts learnt and not learnt; one with an unanswered paraphrase is not."""
    known: dict[str, bool] = {}
    for suite in evidence.asked:
        if suite.questions.role is Role.FACTS and not problem(suite, ("candidate",)):
            answers = by_item(suite.candidate)
            known |= _learnt(suite.questions.items, answers, limits.paraphrase_share)
    return (
        tuple(name for name, right in known.items() if right),
        tuple(name for name, right in known.items() if not right),
    )


def _learnt(
    items: Sequence[SuiteItem], answers: Mapping[str, ItemResult], share: float
) -> dict[str, bool]:
    """Whether each fact (the stratum of its items) is learnt."""
    right: dict[str, list[bool]] = {}
    for item in items:
        answer = answers.get(item.id)
        right.setdefault(item.stratum or item.id, []).append(answer is not None and answer.correct)
    return {name: sum(got) >= share * len(got) - ROUNDING for name, got in sorted(right.items())}


def _undrawn(suite: SuiteEvidence, seed: str, chunk: int | None) -> tuple[str, ...]:
    """Items not answered by the candidate: those left out before, then whole clusters."""
    answered = by_item(suite.candidate)
    wanted: list[str] = []
    for cluster in draw_order(suite.questions.items, seed):
        if chunk is not None and len(wanted) >= chunk:
            break
        wanted += [item.id for item in cluster if item.id not in answered]
    return tuple(wanted)
