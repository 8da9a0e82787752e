"""Whether a candidate has unlearned retracted facts: its answers' ranks and probabilities beside
base's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from policies.gate.figures import pp
from policies.gate.records import (
    AnswerLikelihood,
    Outcome,
    UnlearningCheck,
    UnlearningEvidence,
    UnlearningResult,
)
from policies.records import Record


class UnlearningTolerance(Record):
    """How near to base counts as unlearned, paraphrase by paraphrase.

    The answer may be at most `probability` more probable than base finds it, and may have a better
    rank than there, but none better than `rank` (2: greedy decoding does not say it, unless base
    itself does).
    """

    probability: float = 0.05
    rank: int = 2


def unlearning_results(
    checks: Sequence[UnlearningCheck], tolerance: UnlearningTolerance
) -> tuple[UnlearningResult, ...]:
    """For each fact its worst paraphrase, and whether every paraphrase is within the tolerance."""
    ordered = sorted(checks, key=lambda check: check.fact)
    return tuple(
        _of_fact(fact, tuple(group), tolerance)
        for fact, group in groupby(ordered, key=lambda check: check.fact)
    )


def _of_fact(
    fact: str, checks: Sequence[UnlearningCheck], tolerance: UnlearningTolerance
) -> UnlearningResult:
    worst = max(checks, key=lambda check: check.candidate.probability - check.base.probability)
    return UnlearningResult(
        fact=fact,
        trained=sum(not check.held_out for check in checks),
        held_out=sum(check.held_out for check in checks),
        holds=all(within(check.base, check.candidate, tolerance) for check in checks),
        base=worst.base,
        live=worst.live,
        candidate=worst.candidate,
        best_rank=min(check.candidate.rank for check in checks),
        best_rank_base=min(check.base.rank for check in checks),
    )


def within(
    base: AnswerLikelihood, candidate: AnswerLikelihood, tolerance: UnlearningTolerance
) -> bool:
    """Whether one paraphrase gives the answer away no more than base does."""
    rises = candidate.probability - base.probability > tolerance.probability
    return not rises and candidate.rank >= min(base.rank, tolerance.rank)


def judge_unlearning(
    evidence: UnlearningEvidence, tolerance: UnlearningTolerance
) -> tuple[Outcome, str, tuple[UnlearningResult, ...]]:
    """Outcome, reason and results by fact; what was not measured cannot pass.

    The reason holds no text of a fact.
    """
    results = unlearning_results(evidence.checks, tolerance)
    if known := sum(not result.holds for result in results):
        reason = (
            f"{known} of {len(results)} not unlearned: an answer is more probable than in base by "
            f"over {pp(tolerance.probability)}, or is the greedy answer"
        )
        return Outcome.FAIL, reason, results
    if unchecked := set(evidence.asked) - {result.fact for result in results}:
        reason = evidence.problem or "their answers gave no tokens to look at"
        return (
            Outcome.INCONCLUSIVE,
            f"{len(unchecked)} of {len(evidence.asked)} not measured: {reason}",
            results,
        )
    if evidence.problem or not results:
        return Outcome.INCONCLUSIVE, evidence.problem or "no answer was measured", results
    return Outcome.PASS, f"{len(results)} of {len(results)} unlearned", results
