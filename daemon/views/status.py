"""What status, history, explain and why show: one stable JSON form each, made in one place."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from daemon.children.jobs import Progress
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Event, FactCounts, Retraction
from daemon.views.canary import CanaryView
from daemon.views.explain import Explanation, PlanExplained, explain_batch, explain_plan
from policies.planning import REBUILDS
from policies.records import BatchState, Fact, PlanKind, Record, Revision

BATCHES_SHOWN = 20
FACTS_SHOWN = 20


class ReplicaView(Record):
    """One replica: the target it should serve, what is active, and when that was verified.

    `reason` says why it is not ready; `passing`: that ends by itself (it loads, verifies, sleeps).
    """

    url: str
    ready: bool
    target: str
    healthy: bool = False
    asleep: bool = False
    loaded: tuple[str, ...] = ()
    active: str | None = None
    verified_at: datetime | None = None
    reason: str = ""
    passing: bool = False


class StageView(Record):
    """The stage of a plan that is under way."""

    plan: int
    kind: PlanKind
    stage: str
    started_at: datetime
    progress: Progress | None = None


class FeedView(Record):
    """One feed: how its last polls went. `open`: it failed so often that it is asked less often;
    `due_in_s` are the seconds until it is asked next."""

    name: str
    failures: int = 0
    open: bool = False
    problem: str = ""
    due_in_s: float = 0.0


class DaemonView(Record):
    """What only the running daemon knows. `trouble` needs a person; `waits`, `blocked` do not."""

    pid: int
    server: str
    replicas: tuple[ReplicaView, ...] = ()
    canary: CanaryView | None = None
    feeds: tuple[FeedView, ...] = ()
    progress: Progress | None = None
    blocked: str = ""
    trouble: tuple[str, ...] = ()
    waits: tuple[str, ...] = ()

    @property
    def troubles(self) -> tuple[str, ...]:
        """Everything that is wrong, replicas that are not ready included; one line each."""
        return *self.trouble, *(
            r.reason if r.reason.startswith(r.url) else f"{r.url}: {r.reason}"
            for r in self.replicas
            if r.reason and not r.ready and not r.passing
        )


class BatchView(Record):
    """One batch and where its facts stand."""

    id: str
    name: str
    received_at: datetime
    state: BatchState
    accepted: int
    quarantined: int
    facts: FactCounts
    not_before: datetime | None = None
    """The first `valid_from` of its facts, where all that wait are not valid yet."""


class RevisionView(Record):
    """One revision and whether it is the target."""

    number: int
    name: str
    plan: int | None
    kind: PlanKind | None
    parent: int | None
    adapters: int
    rank: int
    target: bool
    created_at: datetime


class RetractionView(Record):
    """One retracted fact: `state` is "still served", "still loaded", "being erased" or
    "certified"; `plan` is at work on a revision without it.
    """

    handle: str
    fact: str | None
    state: str
    asked_at: datetime
    plan: int | None = None
    certificate: dict[str, Any] | None = None


class SuiteView(Record):
    """How the gate's latest verdict read one suite: its grader, why that one was found to fit, and
    why it was blind."""

    suite: str
    grader: str
    grader_because: str = ""
    blind: str = ""


class StatusView(Record):
    """`palorad status`."""

    running: bool
    paused: bool
    daemon: DaemonView | None
    target: RevisionView
    stages: tuple[StageView, ...]
    batches: tuple[BatchView, ...]
    facts: int
    quarantined: int
    not_learnt: int
    retractions: tuple[RetractionView, ...] = ()
    suites: tuple[SuiteView, ...] = ()


class HistoryView(Record):
    """`palorad history`: revisions and events, the newest last."""

    revisions: tuple[RevisionView, ...]
    events: tuple[Event, ...]


class AnswerView(Record):
    """What one model answers now; `who` is base, previous or live."""

    who: str
    model: str
    answer: str


class FactView(Record):
    """A fact that a question is about: where it came from and what serves it."""

    fact: Fact
    batch: str
    batch_name: str
    validity: str
    replaced_by: str | None = None
    plan: int | None
    adapter: str | None
    revision: int | None
    served: bool


class WhyView(Record):
    """`palorad why`: the facts behind a question, and what base, previous and live answer."""

    question: str
    facts: tuple[FactView, ...]
    answers: tuple[AnswerView, ...] = ()


def status(ledger: Ledger, daemon: DaemonView | None, now: datetime) -> StatusView:
    """Everything about now; `daemon` is what the running daemon adds, None where none runs."""
    target, totals = ledger.revisions.target(), ledger.batches.totals()
    stages = []
    for lease in ledger.steps.leases():
        if not lease.plan:  # a probe that is fitted before there is any plan
            continue
        head = ledger.plans.head(lease.plan)
        stages.append(
            StageView(
                plan=head.id,
                kind=head.kind,
                stage=lease.step,
                started_at=lease.started_at,
                progress=None if daemon is None else daemon.progress,
            )
        )
    return StatusView(
        running=daemon is not None,
        paused=ledger.meta.paused,
        daemon=daemon,
        target=revision_view(ledger, target, target),
        stages=tuple(stages),
        batches=_batches(ledger, now),
        facts=totals["accepted"] - totals["known"],
        quarantined=totals["quarantined"],
        not_learnt=ledger.facts.unlearnt_count(),
        retractions=tuple(retraction(ledger, r) for r in ledger.retractions.all(unfinished=True)),
        suites=_suites(ledger),
    )


def _suites(ledger: Ledger) -> tuple[SuiteView, ...]:
    verdict = ledger.steps.latest_verdict()
    return tuple(
        SuiteView(
            suite=suite.suite,
            grader=suite.grader,
            grader_because=suite.grader_because,
            blind=suite.blind,
        )
        for suite in (verdict.suites if verdict else ())
    )


def retraction(ledger: Ledger, found: Retraction) -> RetractionView:
    """Where a retracted fact stands, with its certificate once there is one."""
    head = ledger.plans.open_plan()
    replacing = head is not None and head.kind in REBUILDS
    state = "being erased"
    if found.certified_at is not None:
        state = "certified"
    elif found.served:
        state = "still served"
    elif found.unloaded_at is None:
        state = "still loaded"
    return RetractionView(
        handle=found.handle,
        fact=found.id,
        state=state,
        asked_at=found.asked_at,
        plan=head.id if head is not None and replacing and found.served else None,
        certificate=found.certificate if found.certified_at else None,
    )


def history(ledger: Ledger, limit: int) -> HistoryView:
    """The latest revisions and events."""
    target = ledger.revisions.target()
    return HistoryView(
        revisions=tuple(revision_view(ledger, r, target) for r in ledger.revisions.all(limit)),
        events=ledger.events.latest(limit),
    )


def explain(ledger: Ledger, batch_name: str) -> Explanation:
    """Why the batch stands where it stands; raises `NotFound` or `Ambiguous`."""
    batch = ledger.batches.get(batch_name)
    plans: list[PlanExplained] = []
    for head in ledger.plans.heads(batch_id=batch.id):
        verdict = ledger.steps.verdict(head.id)
        facts: dict[str, Fact] = {}
        if verdict is not None and verdict.not_learnt:
            facts = {fact.id: fact for fact in ledger.facts.find(ids=verdict.not_learnt)}
        cards = ledger.steps.scorecards(head.id)
        named = head.served.name if head.served else None
        card = next((c for c in cards if c.model == named), None)
        plans.append(explain_plan(ledger.plans.get(head.id), verdict, facts, card))
    return explain_batch(batch, ledger.batches.state(batch.id), plans)


def why(ledger: Ledger, question: str, answers: tuple[AnswerView, ...] = ()) -> WhyView:
    """The facts that a question is about, the best match first."""
    lineage = ledger.revisions.target().lineage
    found = ledger.text.search(question, FACTS_SHOWN)
    return WhyView(
        question=question,
        facts=tuple(_fact(ledger, fact, lineage) for fact in found),
        answers=answers,
    )


def _fact(ledger: Ledger, fact: Fact, lineage: tuple[str, ...]) -> FactView:
    standing = ledger.facts.state(fact.id)
    plan_id = ledger.knowledge.taught_by(fact.id, lineage) or standing.get("learnt")
    adapter = revision = None
    if plan_id is not None:
        head = ledger.plans.head(plan_id)
        adapter = head.adapter
        revision = ledger.listings.revision_of(head.id)
    batch = ledger.batches.get(standing["batch"])
    return FactView(
        fact=fact,
        batch=batch.id,
        batch_name=batch.name,
        validity=standing["validity"],
        replaced_by=standing["replaced_by"],
        plan=plan_id,
        adapter=adapter,
        revision=revision,
        served=adapter is not None and adapter in lineage,
    )


def _batches(ledger: Ledger, now: datetime) -> tuple[BatchView, ...]:
    """The latest batches; few queries, since each may wait for the loop at work beside it."""
    shown = ledger.batches.latest(BATCHES_SHOWN)
    ids = [batch.id for batch in shown]
    states, counts = ledger.batches.states(ids), ledger.facts.counts_by_batch(ids)
    return tuple(
        BatchView(
            id=batch.id,
            name=batch.name,
            received_at=batch.received_at,
            state=states[batch.id],
            accepted=batch.accepted,
            quarantined=batch.quarantined,
            facts=counts[batch.id],
            not_before=ledger.facts.not_before(batch.id, now) if counts[batch.id].pending else None,
        )
        for batch in shown
    )


def revision_view(ledger: Ledger, revision: Revision, target: Revision) -> RevisionView:
    """A revision, and whether it is the target."""
    head = None if revision.plan_id is None else ledger.plans.head(revision.plan_id)
    return RevisionView(
        number=revision.number,
        name=revision.served_name,
        plan=revision.plan_id,
        kind=head.kind if head else None,
        parent=revision.parent,
        adapters=len(revision.lineage),
        rank=ledger.revisions.lineage_rank(revision.lineage),
        target=revision.number == target.number,
        created_at=revision.created_at,
    )
