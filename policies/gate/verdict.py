"""The gate's verdict on a candidate: pass, fail or inconclusive, and why.

A candidate passes when every suite passes. Worse by the margin on any one suite, it must get past
that suite's own test at alpha, so alpha needs no correction for several suites (an
intersection-union test: Berger, Technometrics 24, 1982). It fails when any test fails, so each of
the k tests gets beta / k (Bonferroni), and a candidate that lost nothing is failed with
probability beta at most.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from policies.gate.evidence import Evidence, SuiteEvidence, by_item, draw_order, problem, rate
from policies.gate.limits import GateLimits
from policies.gate.paired import inconclusive, judge_paired, percent, points, together
from policies.gate.records import ItemResult, Outcome, Role, SuiteItem, SuiteVerdict, Verdict

CHUNK: Final = 64
_ROUNDING: Final = 1e-9
_PAIRED: Final = (Role.REASONING, Role.RETENTION, Role.LOCALITY)


def judge(evidence: Evidence, limits: GateLimits) -> Verdict:
    """The verdict on what has been measured so far; what is missing never passes."""
    beta = limits.beta / max(1, _tests(evidence, limits))
    suites = tuple(_judge_suite(suite, evidence, limits, beta) for suite in evidence.suites)
    reasons = [f"{suite.suite}: {suite.reason}" for suite in suites]
    outcomes = {suite.outcome for suite in suites}
    for role in sorted(set(evidence.required) - {suite.role for suite in suites}):
        outcomes.add(Outcome.INCONCLUSIVE)
        reasons.append(f"no suite of the role {role.value!r} was asked, and one is required")
    learnt, not_learnt = _learning(evidence, limits)
    return Verdict(
        outcome=together(outcomes),
        rule=rule(limits),
        reasons=tuple(reasons),
        suites=suites,
        learnt=learnt,
        not_learnt=not_learnt,
    )


def next_items(
    evidence: Evidence,
    limits: GateLimits,
    *,
    chunk: int = CHUNK,
    given_up: Collection[str] = (),
) -> Mapping[str, tuple[str, ...]]:
    """The items to ask the candidate next, by suite; nothing once a drop is shown.

    A candidate that did not learn enough has failed, but is still asked about reasoning: its
    verdict is to say whether the batch did harm, too.

    All new facts come at once, every other undecided suite in its drawn order, at least `chunk`
    items at a time. Whoever the candidate is compared with must answer the same items. A suite with
    an item in `given_up`, which could not be answered, can no longer pass and is left alone.
    """
    verdict = judge(evidence, limits)
    judged = list(zip(evidence.suites, verdict.suites, strict=True))
    failed = {s.questions.role for s, said in judged if said.outcome is Outcome.FAIL}
    if failed - {Role.FACTS}:
        return {}
    wanted: dict[str, tuple[str, ...]] = {}
    for suite, said in judged:
        asked = suite.questions
        if failed and asked.role is not Role.REASONING:
            continue
        if said.outcome is not Outcome.INCONCLUSIVE or asked.role is Role.DRIFT:
            continue
        if any(item.id in given_up for item in asked.items):
            continue
        size = None if asked.role is Role.FACTS else chunk
        if items := _undrawn(suite, evidence.seed, size):
            wanted[asked.suite] = items
    return wanted


def rule(limits: GateLimits) -> str:
    """What the gate does, in one sentence."""
    return (
        "A candidate passes when it is shown, with error at most "
        f"{percent(limits.alpha)}, to be worse than the reference weights and the live revision "
        f"by less than {points(limits.reasoning_margin)} on reasoning, "
        f"{points(limits.retention_margin)} on earlier facts and "
        f"{points(limits.locality_margin)} on known facts, and at least "
        f"{percent(limits.learnt_share)} of the new facts are learnt; it fails when a drop is "
        f"shown, which happens to a harmless one with probability {percent(limits.beta)} at most; "
        "else more items or a person decide."
    )


def _judge_suite(
    suite: SuiteEvidence, evidence: Evidence, limits: GateLimits, beta: float
) -> SuiteVerdict:
    asked = suite.questions
    if asked.role is Role.DRIFT:
        return _judge_drift(suite, limits)
    baselines = _baselines(asked.role, evidence)
    if found := problem(suite, ("candidate", *baselines)):
        return inconclusive(asked, found)
    if asked.role is Role.FACTS:
        return _judge_facts(suite, limits)
    if not baselines and limits.retention_floor is None:
        return inconclusive(asked, "there is no live revision and no floor to compare with")
    return judge_paired(suite, evidence.seed, baselines, limits, beta)


def _judge_facts(suite: SuiteEvidence, limits: GateLimits) -> SuiteVerdict:
    asked = suite.questions
    answers = by_item(suite.candidate)
    missing = [item.id for item in asked.items if item.id not in answers]
    if missing:
        return inconclusive(asked, f"{len(missing)} of {len(asked.items)} questions unanswered")
    known = _learnt(asked.items, answers, limits.paraphrase_share)
    count, share = sum(known.values()), sum(known.values()) / len(known)
    enough = share >= limits.learnt_share - _ROUNDING
    return SuiteVerdict(
        suite=asked.suite,
        role=asked.role,
        outcome=Outcome.PASS if enough else Outcome.FAIL,
        reason=f"{count} of {len(known)} facts learnt ({percent(share)}); "
        f"{percent(limits.learnt_share)} asked for",
        candidate=rate(asked.items, answers),
        items_used=len(asked.items),
    )


def _judge_drift(suite: SuiteEvidence, limits: GateLimits) -> SuiteVerdict:
    if suite.drift is None or suite.drift != suite.drift:
        return inconclusive(suite.questions, "the drift was not measured")
    allowed = limits.drift
    outcome = Outcome.FAIL if allowed is not None and suite.drift > allowed else Outcome.PASS
    bound = f"at most {allowed:+.3f} allowed" if allowed is not None else "no limit set"
    return SuiteVerdict(
        suite=suite.questions.suite,
        role=Role.DRIFT,
        outcome=outcome,
        reason=f"the loss on fixed text changed by {suite.drift:+.3f} nats a token; {bound}",
        items_used=len(suite.questions.items),
    )


# --- parts of the decision ---------------------------------------------------------------------


def _baselines(role: Role, evidence: Evidence) -> tuple[str, ...]:
    """Whom a suite in this role is compared with."""
    live = ("live",) if evidence.live else ()
    if role is Role.REASONING:
        return ("reference", *live)
    if role is Role.LOCALITY:
        return ("reference",)
    return live if role is Role.RETENTION else ()


def _tests(evidence: Evidence, limits: GateLimits) -> int:
    """How many tests can fail a candidate that lost nothing: beta is shared out over them."""
    count = 0
    for suite in evidence.suites:
        asked = suite.questions
        if asked.role in _PAIRED:
            watched = 2 if any(item.stratum for item in asked.items) else 1
            count += watched * len(_baselines(asked.role, evidence))
            count += asked.role is Role.RETENTION and limits.retention_floor is not None
    return count


def _learning(evidence: Evidence, limits: GateLimits) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The new facts learnt and not learnt; one with an unanswered paraphrase is not."""
    known: dict[str, bool] = {}
    for suite in evidence.suites:
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
    return {name: sum(got) >= share * len(got) - _ROUNDING for name, got in sorted(right.items())}


def _undrawn(suite: SuiteEvidence, seed: str, chunk: int | None) -> tuple[str, ...]:
    """Items not answered by the candidate: those left out before, then whole clusters."""
    answered = by_item(suite.candidate)
    wanted: list[str] = []
    for cluster in draw_order(suite.questions.items, seed):
        if chunk is not None and len(wanted) >= chunk:
            break
        wanted += [item.id for item in cluster if item.id not in answered]
    return tuple(wanted)
