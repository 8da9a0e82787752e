"""Worker steps that really train, and whose verdict is decided by the facts' words."""

from __future__ import annotations

from daemon.children.worker import StepContext
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.training.child import probe, train
from policies.gate.records import Outcome, Verdict

__all__ = ["evaluate", "probe", "train"]


def evaluate(desk: StepContext) -> EvaluationReport:
    """Sums fail, everything else passes."""
    facts = JudgingRequest.model_validate_json(desk.request).evaluation.facts
    sums = [fact.prompt for fact in facts if "+" in fact.prompt]
    verdict = Verdict(
        outcome=Outcome.FAIL if sums else Outcome.PASS,
        rule="sums fail",
        reasons=(f"{len(sums)} sums",) if sums else (),
        suites=(),
        learnt=() if sums else tuple(fact.id for fact in facts),
    )
    return EvaluationReport(verdict=verdict, scorecards=(), seconds={})
