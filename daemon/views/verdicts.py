"""One plan and its verdict: every suite, and the answers that tell what changed, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from adapters import store
from adapters.errors import StoreConflict
from daemon.config.layout import Layout
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import PlanHead
from daemon.views.status import RevisionView, revision_view
from policies.gate.records import Verdict
from policies.records import Fact, Record

SHOWN: Final = 50
PIECE: Final = 40


class ItemView(Record):
    """One item: what base, the live model and the candidate answered; "" where one was not
    asked."""

    item: str
    prompt: str
    expected: str
    base: str = ""
    live: str = ""
    candidate: str = ""


class SuiteItems(Record):
    """Items of one suite that the candidate answers wrongly and base or live did not: the first,
    and how many there are."""

    suite: str
    count: int
    items: tuple[ItemView, ...]


class PlanView(Record):
    """`/api/plans/{plan}`: a plan, the gate's verdict, and the answers behind it."""

    plan: PlanHead
    revision: int | None
    parent: RevisionView
    batches: tuple[tuple[str, str], ...]
    verdict: Verdict | None
    failing: tuple[SuiteItems, ...] = ()
    not_learnt: tuple[ItemView, ...] = ()
    learnt: int = 0


class PlansView(Record):
    """`/api/plans`: the newest first; `before` asks for the piece that follows."""

    plans: tuple[PlanHead, ...]
    revisions: dict[int, int]
    before: int | None = None


class RevisionPage(Record):
    """`/api/revisions/{number}`: what can be served, what it is made of and what was built on it.

    `retracted` counts the retracted facts that it knows: it is never served again then. `target`
    is the number of the target.
    """

    revision: RevisionView
    target: int
    lineage: tuple[str, ...]
    ancestors: tuple[int, ...]
    children: tuple[int, ...]
    retracted: int
    manifest: dict[str, Any] | None
    plan: PlanView | None


def plans_view(ledger: Ledger, before: int | None = None) -> PlansView:
    """A piece of the plans."""
    heads = ledger.plans.heads(limit=PIECE + 1, before=before)
    shown = heads[:PIECE]
    return PlansView(
        plans=shown,
        revisions=ledger.listings.revisions_of([head.id for head in shown]),
        before=shown[-1].id if len(heads) > PIECE else None,
    )


def plan_view(ledger: Ledger, number: int) -> PlanView:
    """One plan; raises `NotFound`."""
    head, target = ledger.plans.head(number), ledger.revisions.target()
    parent = ledger.revisions.get(head.parent)
    verdict = ledger.steps.verdict(number)
    failing: tuple[SuiteItems, ...] = ()
    missed: tuple[ItemView, ...] = ()
    if verdict is not None and (verdict.not_learnt or any(s.newly_failing for s in verdict.suites)):
        named = {
            "base": ledger.revisions.get(0).served_name,
            "live": parent.served_name,
            "candidate": head.served.name if head.served else "",
        }
        said = {
            who: _answers(ledger.listings.scorecard(number, name)) for who, name in named.items()
        }
        failing = _failing(verdict, said)
        missed = _missed(ledger, verdict, said)
    return PlanView(
        plan=head,
        revision=ledger.listings.revision_of(number),
        parent=revision_view(ledger, parent, target),
        batches=tuple(ledger.batches.names(ledger.plans.batches(number, SHOWN)).items()),
        verdict=verdict,
        failing=failing,
        not_learnt=missed,
        learnt=0 if verdict is None else len(verdict.learnt),
    )


def revision_page(ledger: Ledger, layout: Layout, number: int) -> RevisionPage:
    """One revision; raises `NotFound`."""
    revision, target = ledger.revisions.get(number), ledger.revisions.target()
    return RevisionPage(
        revision=revision_view(ledger, revision, target),
        target=target.number,
        lineage=revision.lineage,
        ancestors=ledger.listings.ancestors_of(number, SHOWN),
        children=ledger.listings.children_of(number),
        retracted=ledger.knowledge.forbidden_count(revision.lineage),
        manifest=_manifest(layout, revision.served_name) if number else None,
        plan=None if revision.plan_id is None else plan_view(ledger, revision.plan_id),
    )


def _manifest(layout: Layout, name: str) -> dict[str, Any] | None:
    try:
        return dict(store.read_manifest(layout.served / name))
    except StoreConflict:
        return None


def _answers(card: Mapping[str, Any] | None) -> dict[tuple[str, str], str]:
    """What one model answered, by suite and item."""
    return {
        (suite["suite"], result["id"]): str(result.get("output", ""))
        for suite in (card or {}).get("suites", ())
        for result in suite["results"]
    }


def _failing(
    verdict: Verdict, said: Mapping[str, Mapping[tuple[str, str], str]]
) -> tuple[SuiteItems, ...]:
    return tuple(
        SuiteItems(
            suite=suite.suite,
            count=len(suite.newly_failing),
            items=tuple(
                ItemView(
                    item=failed.item,
                    prompt=failed.prompt,
                    expected=failed.expected,
                    base=said["base"].get((suite.suite, failed.item), ""),
                    live=said["live"].get((suite.suite, failed.item), failed.was),
                    candidate=failed.now,
                )
                for failed in suite.newly_failing[:SHOWN]
            ),
        )
        for suite in verdict.suites
        if suite.newly_failing
    )


def _missed(
    ledger: Ledger, verdict: Verdict, said: Mapping[str, Mapping[tuple[str, str], str]]
) -> tuple[ItemView, ...]:
    names = verdict.not_learnt[:SHOWN]
    by_item = {who: {item: text for (_, item), text in of.items()} for who, of in said.items()}
    known = {fact.id: fact for fact in ledger.facts.find(ids=names)}
    return tuple(
        _missed_item(name, known[name], by_item)
        if name in known
        else ItemView(item=name, prompt="", expected="")
        for name in names
    )


def _missed_item(name: str, fact: Fact, by_item: Mapping[str, Mapping[str, str]]) -> ItemView:
    asked: Sequence[str] = fact.eval_prompts or (fact.prompt,)
    given = {
        who: {n: of.get(f"{name}#{n}") for n in range(len(asked))} for who, of in by_item.items()
    }
    wrong = next(
        (n for n, text in given["candidate"].items() if text and fact.answer not in text), 0
    )
    return ItemView(
        item=name,
        prompt=asked[wrong],
        expected=fact.answer,
        **{who: texts[wrong] or "" for who, texts in given.items()},
    )
