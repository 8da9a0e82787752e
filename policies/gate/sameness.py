"""Whether what was judged is another model at all: one that is its own baseline always passes."""

from __future__ import annotations

from policies.gate.baselines import Model
from policies.gate.evidence import Evidence, by_item
from policies.gate.records import Role


def same_model(evidence: Evidence) -> str:
    """Why the candidate seems not to be what was judged; empty where it differs.

    The same weights under two names, or a candidate that gives the live revision's answer (the
    base's, where none is live) to every question of every suite, character by character: then its
    adapter was most likely not applied. An adapter that changes how likely retracted answers are
    was applied.
    """
    for one, other in evidence.twins:
        if "candidate" in (one, other):
            first = other if one == "candidate" else one
            return f"is {first} itself, by its name or its weights: nothing new was judged"
    before: Model = "live" if evidence.live is not None else "base"
    taught = any(s.questions.role in (Role.FACTS, Role.RETENTION) for s in evidence.suites)
    for model in dict.fromkeys((before, *(() if taught else ("base",)))):
        if items := _all_alike(evidence, model):
            return (
                f"gives {model}'s answer, character by character, to all {items} questions that "
                "both were asked: was its adapter applied? See the server's log"
            )
    return ""


def _all_alike(evidence: Evidence, before: Model) -> int:
    """How many questions both answered, if they answered all of them alike; else 0."""
    if _scored_otherwise(evidence, before):
        return 0
    items = 0
    for suite in evidence.suites:
        candidate, others = by_item(suite.candidate), by_item(suite.score(before))
        for name in candidate.keys() & others.keys():
            if candidate[name].output != others[name].output:
                return 0
            items += 1
    return items


def _scored_otherwise(evidence: Evidence, before: Model) -> bool:
    checks = evidence.unlearning.checks if evidence.unlearning else ()
    return any(
        other is not None and check.candidate != other
        for check in checks
        for other in (check.live if before == "live" else check.base,)
    )
