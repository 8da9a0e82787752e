"""What no suite says by itself: questions that are gone, roles that nothing watches, twins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policies.gate.evidence import Evidence
from policies.gate.limits import GateLimits
from policies.gate.records import Role, SuiteVerdict
from policies.gate.sameness import same_model


@dataclass(frozen=True, slots=True)
class Gap:
    """Why a verdict may not be a pass, or where `warning`, what is only said."""

    reason: str
    warning: bool = False


def gaps(evidence: Evidence, suites: Sequence[SuiteVerdict], limits: GateLimits) -> tuple[Gap, ...]:
    """Every gap; what is missing never passes."""
    return (*_emptied(evidence, limits), *_unwatched(evidence, suites), *_twins(evidence))


def _emptied(evidence: Evidence, limits: GateLimits) -> Iterator[Gap]:
    for suite in evidence.suites:
        if suite.nothing_left:
            asked = suite.questions
            yield Gap(
                f"{asked.suite}: {asked.left_out} questions left out: facts have changed their "
                "answers; no question is left, so add others",
                warning=limits.blind_suites == "warn",
            )


def _unwatched(evidence: Evidence, suites: Sequence[SuiteVerdict]) -> Iterator[Gap]:
    asked = {suite.role for suite in suites}
    seeing = {suite.role for suite in suites if not suite.blind}
    for role in sorted(set(evidence.required) - seeing):
        if role not in asked:
            yield Gap(f"no suite of the role {role.value!r} was asked, and one is required")
        else:
            yield Gap(
                f"every suite of the role {role.value!r} is blind, and one that is not is required"
            )


def _twins(evidence: Evidence) -> Iterator[Gap]:
    if same := same_model(evidence):
        yield Gap(f"the candidate {same}")
    retention = any(suite.questions.role is Role.RETENTION for suite in evidence.suites)
    if retention and any(set(pair) == {"base", "live"} for pair in evidence.twins):
        yield Gap("live is base itself, by its name or its weights: earlier facts have no baseline")
