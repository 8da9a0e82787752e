"""Whether a model has forgotten: its answers' ranks and probabilities beside the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from policies.gate.records import (
    AnswerLikelihood,
    Outcome,
    UnlearningCheck,
    UnlearningResult,
    Verdict,
)
from policies.records import Record


class UnlearningTolerance(Record):
    """How near to the reference counts as forgotten, paraphrase by paraphrase.

    The answer may be at most `probability` more probable than the reference finds it, and may
    have a better rank than there, but none better than `rank` (2: greedy decoding does not say
    it, unless the reference itself does).
    """

    probability: float = 0.05
    rank: int = 2


def forgotten(
    recollections: Sequence[UnlearningCheck], tolerance: UnlearningTolerance
) -> tuple[UnlearningResult, ...]:
    """For each fact its worst paraphrase, and whether every paraphrase is within the tolerance."""
    ordered = sorted(recollections, key=lambda one: one.fact)
    return tuple(
        _of_one(fact, tuple(ones), tolerance)
        for fact, ones in groupby(ordered, key=lambda one: one.fact)
    )


def _of_one(
    fact: str, ones: Sequence[UnlearningCheck], tolerance: UnlearningTolerance
) -> UnlearningResult:
    worst = max(ones, key=lambda one: one.candidate.probability - one.reference.probability)
    return UnlearningResult(
        fact=fact,
        trained=sum(not one.held_out for one in ones),
        held_out=sum(one.held_out for one in ones),
        holds=all(within(one.reference, one.candidate, tolerance) for one in ones),
        reference=worst.reference,
        live=worst.live,
        candidate=worst.candidate,
        best_rank=min(one.candidate.rank for one in ones),
        best_rank_reference=min(one.reference.rank for one in ones),
    )


def within(
    reference: AnswerLikelihood, candidate: AnswerLikelihood, tolerance: UnlearningTolerance
) -> bool:
    """Whether one paraphrase gives the answer away no more than the reference does."""
    rises = candidate.probability - reference.probability > tolerance.probability
    return not rises and candidate.rank >= min(reference.rank, tolerance.rank)


def with_forgotten(
    verdict: Verdict,
    found: Sequence[UnlearningResult],
    tolerance: UnlearningTolerance,
    problem: str = "",
) -> Verdict:
    """The gate's verdict where retracted facts were asked for, too.

    A candidate that gives one of them away fails; where that could not be measured it cannot
    pass. The reasons hold no text of a fact.
    """
    if not found and not problem:
        return verdict
    told = [one for one in found if not one.holds]
    outcome, reason = verdict.outcome, f"retracted facts: {len(found)} forgotten"
    if told:
        outcome = Outcome.FAIL
        reason = (
            f"retracted facts: {len(told)} of {len(found)} are given away, more probable by over "
            f"{tolerance.probability:g} than in the reference, or said"
        )
    elif problem:
        outcome = Outcome.INCONCLUSIVE if outcome is Outcome.PASS else outcome
        reason = f"retracted facts: {problem}"
    reasons = (*verdict.reasons, reason)
    changed = {"outcome": outcome, "reasons": reasons, "forgotten": tuple(found)}
    return verdict.model_copy(update=changed)
