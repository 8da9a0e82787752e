"""Facts: found by words, and one fact's whole story."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from datetime import datetime
from typing import Any, Final

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import FactPlan
from daemon.views.status import RetractionView, retraction
from policies.errors import NotFound
from policies.records import Batch, Fact, Record

PIECE: Final = 40


class FoundFact(Record):
    """A fact in a list; `learnt_by` is the plan that taught it, if one has."""

    id: str
    prompt: str
    answer: str
    validity: str
    state: str
    learnt_by: int | None = None


class FactsView(Record):
    """`/api/facts`: what a question finds, the best first; without one the latest."""

    question: str
    facts: tuple[FoundFact, ...]
    before: int | None = None


class Version(Record):
    """One answer that was ever given for a key."""

    id: str
    answer: str
    validity: str
    recorded_at: datetime


class FactStory(Record):
    """`/api/facts/{id}`: where a fact came from, what became of it, and what serves it.

    `taught_by` is the plan whose adapter makes the target know it; None where the target does not.
    """

    fact: Fact
    batch: Batch
    validity: str
    replaced_by: str | None
    state: str
    tries: int
    versions: tuple[Version, ...]
    plans: tuple[FactPlan, ...]
    taught_by: int | None
    target: int
    retraction: RetractionView | None = None


def facts_view(ledger: Ledger, question: str, before: int | None = None) -> FactsView:
    """Facts about a question, or the latest."""
    if question.strip():
        found = ledger.text.search(question, PIECE)
        return FactsView(question=question, facts=_found(ledger, found))
    latest = ledger.listings.latest_facts(PIECE + 1, before)
    return FactsView(
        question="",
        facts=_found(ledger, [fact for _, fact in latest[:PIECE]]),
        before=latest[PIECE - 1][0] if len(latest) > PIECE else None,
    )


def story(
    ledger: Ledger, fact_id: str, remembered: MutableMapping[tuple[Any, ...], Any]
) -> FactStory:
    """All that the ledger knows of a fact; raises `NotFound`.

    `remembered` keeps what stands behind the target's adapters, which takes a walk over all plans.
    """
    found = ledger.facts.find(ids=[fact_id])
    if not found:
        raise NotFound(f"no fact {fact_id}; search for it by its words")
    standing, target = ledger.facts.state(fact_id), ledger.revisions.target()
    plans = ledger.listings.plans_of(fact_id)
    return FactStory(
        fact=found[0],
        batch=ledger.batches.get(standing["batch"]),
        validity=standing["validity"],
        replaced_by=standing["replaced_by"],
        state=standing["state"],
        tries=standing["tries"],
        versions=tuple(
            Version(id=name, answer=answer, validity=validity, recorded_at=at)
            for name, answer, validity, at in ledger.listings.versions(fact_id)
        ),
        plans=plans,
        taught_by=_taught_by(ledger, plans, target.lineage, remembered),
        target=target.number,
        retraction=_retraction(ledger, fact_id, standing),
    )


def _taught_by(
    ledger: Ledger,
    plans: Sequence[FactPlan],
    lineage: Sequence[str],
    remembered: MutableMapping[tuple[Any, ...], Any],
) -> int | None:
    """As `Knowledge.taught_by`: by an adapter that knows a plan which learnt the fact and none
    later which missed it."""
    for sha256 in reversed(lineage):
        key = ("behind", sha256)
        if key not in remembered:
            for old in [k for k in remembered if k[0] == "behind" and k[1] not in lineage]:
                remembered.pop(old, None)
            remembered[key] = ledger.knowledge.behind(sha256)
        maker, known = remembered[key]
        last = max((p for p in plans if p.plan in known), key=lambda p: p.plan, default=None)
        if last is not None and last.learnt is not False:
            return int(maker) if maker is not None else None
    return None


def _retraction(ledger: Ledger, fact_id: str, standing: dict[str, Any]) -> RetractionView | None:
    if standing["validity"] != "retracted":
        return None
    try:
        return retraction(ledger, ledger.retractions.get(fact_id))
    except NotFound:
        return None


def _found(ledger: Ledger, facts: Sequence[Fact]) -> tuple[FoundFact, ...]:
    states = ledger.facts.states([fact.id for fact in facts])
    return tuple(
        FoundFact(
            id=fact.id,
            prompt=fact.prompt,
            answer=fact.answer,
            validity=states[fact.id]["validity"],
            state=states[fact.id]["state"],
            learnt_by=states[fact.id]["learnt"],
        )
        for fact in facts
        if fact.id in states
    )
