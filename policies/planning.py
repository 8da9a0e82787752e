"""What to do next: a snapshot of what is durably true becomes one action, or none."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise, takewhile
from typing import Final

from policies.backoff import LONGEST_PAUSE_S
from policies.batching import Batching, not_yet, quiet
from policies.lineage import Lineage, learning_rank, outgrown, over_budget
from policies.records import PlanKind, PlanState, Record

_LONGEST_PAUSE: Final = timedelta(seconds=LONGEST_PAUSE_S)
REBUILDS: Final = frozenset({PlanKind.CONSOLIDATE, PlanKind.RETRACT})
REBUILD_TRIES: Final = 2
INTERRUPTIONS_PER_ATTEMPT: Final = 10


class Step(StrEnum):
    """What a leased child does."""

    PROBE = "probe"
    TRAIN = "train"
    EVALUATE = "evaluate"


class Limits(Record):
    """The settings that planning depends on."""

    rank: int
    rank_budget: int
    lineage: Lineage = "warm-start"
    retrain_at: int = 0
    """From so many facts on, a warm-started adapter is retrained from scratch; 0: never."""
    max_rank: int
    max_facts: int
    attempts: int
    seed: int = 0
    batching: Batching = Batching()

    def rank_for(self, facts: int) -> int:
        """Rank of an adapter that is to know `facts` facts; in a stack another one fits on it."""
        if self.lineage == "warm-start":
            return self.rank_budget
        return learning_rank(facts, self.rank, self.rank_budget - self.rank)


class Waiting(Record):
    """One fact to be learnt: its batch, whether that batch is to be planned by itself, how many
    plans have had the fact before, whether it is urgent and since when it waits.
    """

    id: str
    batch: str
    alone: bool = False
    tries: int = 0
    urgent: bool = False
    since: datetime | None = None


class OpenPlan(Record):
    """The plan under way."""

    id: int
    kind: PlanKind
    state: PlanState
    attempts: int = 0
    interruptions: int = 0
    not_before: datetime | None = None
    fits: bool = True
    leased: bool = False
    canary: bool = False
    """Once it has passed, its candidate answers a share of the requests before it goes live."""


class Snapshot(Record):
    """What planning needs of the ledger; its size does not grow with the facts.

    `waiting` holds at most `limits.max_facts` facts in the order in which they are to be learnt;
    `known` counts the valid facts that the target lineage learnt, `forbidden` the retracted
    ones that it learnt or replayed; `refused_rebuilds` counts the rebuilds of this very lineage
    that did not go live; `no_space` says that training on top of it found no free directions.
    `scratch_facts` were learnt when an adapter was last trained from scratch, even if the gate
    refused it, and `added_facts` since; both are counted only when nothing waits.
    """

    limits: Limits
    paused: bool = False
    probe_ready: bool = True
    lineage: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    """Rank of each adapter of the lineage."""
    known: int = 0
    forbidden: int = 0
    refused_rebuilds: int = 0
    no_space: bool = False
    scratch_facts: int = 0
    added_facts: int = 0
    waiting: tuple[Waiting, ...] = ()
    open: OpenPlan | None = None


class MakePlan(Record):
    """Plan an adapter; the facts of a rebuild are all valid ones of the lineage.

    A `learn` plan starts from the adapters that it replaces (warm start) and replays what they
    know.
    """

    kind: PlanKind
    rank: int
    seed: int
    because: str
    replaces: tuple[str, ...] = ()
    fact_ids: tuple[str, ...] = ()


class Run(Record):
    """Start a leased child for a plan."""

    plan: int
    step: Step


class StartCanary(Record):
    """Have a passed plan's candidate answer a share of the requests."""

    plan: int


class Promote(Record):
    """Make a passed plan's lineage the target revision."""

    plan: int


class Discard(Record):
    """The plan builds on something that is no longer target."""

    plan: int
    because: str


class GiveUp(Record):
    """The plan has used up its attempts."""

    plan: int
    because: str


class Clear(Record):
    """Nothing valid is left to serve: back to the base."""

    because: str


Action = MakePlan | Run | StartCanary | Promote | Discard | GiveUp | Clear


def next_action(snapshot: Snapshot, now: datetime) -> Action | None:
    """The one next thing to do; None where there is nothing, or it has to wait."""
    if snapshot.open is not None:
        return _continue(snapshot.open, snapshot, now)
    if snapshot.paused:
        return None
    if snapshot.forbidden:
        return _forget(snapshot)
    if snapshot.waiting:
        return _learn(snapshot) if gathering(snapshot, now) is None else None
    if _outgrown(snapshot) and quiet(snapshot.limits.batching, now) is None:
        grown = (
            f"trained from scratch on {snapshot.scratch_facts} facts, "
            f"{snapshot.added_facts} added since"
        )
        return rebuild(snapshot, PlanKind.CONSOLIDATE, grown)
    return None


def even_sample(available: int, wanted: int, seed: int) -> list[int]:
    """At most `wanted` of the places 0 to `available` - 1, in ascending order.

    One place at random out of each of `wanted` equal shares: what came one after another, such as
    the facts of a batch, is taken in proportion.
    """
    if wanted >= available:
        return list(range(available))
    draw = random.Random(seed)
    edges = [number * available // wanted for number in range(wanted + 1)] if wanted > 0 else []
    return [draw.randrange(first, last) for first, last in pairwise(edges)]


def gathering(snapshot: Snapshot, now: datetime) -> str | None:
    """Why the waiting facts are not learnt yet although they could be; None where they may be."""
    since = [fact.since for fact in snapshot.waiting if fact.since is not None]
    return not_yet(
        snapshot.limits.batching,
        len(snapshot.waiting),
        min(since, default=None),
        any(fact.urgent for fact in snapshot.waiting),
        now,
    )


def blocked(snapshot: Snapshot) -> str | None:
    """Why nothing happens although something waits, in one line; None where nothing is blocked."""
    if snapshot.open is not None or not (snapshot.waiting or snapshot.forbidden):
        return None
    if snapshot.paused:
        return "paused; 'palorad resume' ends that"
    if snapshot.forbidden and _forget(snapshot) is None:
        return (
            f"{snapshot.forbidden} retracted facts are still served: no rebuild without them "
            "passed the gate; see 'palorad history'"
        )
    if snapshot.waiting and _learn(snapshot) is None:
        way_out = "lower protection.share" if snapshot.no_space else "raise train.rank_budget"
        return (
            "no room for another adapter, and no consolidation passed the gate; see "
            f"'palorad history', or {way_out}"
        )
    return None


def _continue(plan: OpenPlan, snapshot: Snapshot, now: datetime) -> Action | None:
    if not plan.fits:
        return Discard(plan=plan.id, because="what it builds on is no longer target")
    if plan.leased:
        return None
    if spent := _spent(plan, snapshot.limits):
        return GiveUp(plan=plan.id, because=spent)
    if snapshot.paused or _rests(plan, now):
        return None
    if plan.state not in (PlanState.PASSED, PlanState.CANARY):
        return Run(plan=plan.id, step=_step(plan, snapshot))
    return _go_live(plan)


def _go_live(plan: OpenPlan) -> Action | None:
    if not plan.canary:
        return Promote(plan=plan.id)
    return StartCanary(plan=plan.id) if plan.state is PlanState.PASSED else None


def _rests(plan: OpenPlan, now: datetime) -> bool:
    """Whether a plan waits after a failure; no pause ends later than the longest one would."""
    return plan.not_before is not None and now < plan.not_before <= now + _LONGEST_PAUSE


def _spent(plan: OpenPlan, limits: Limits) -> str | None:
    if plan.attempts >= limits.attempts:
        return f"failed {plan.attempts} times"
    if plan.interruptions >= limits.attempts * INTERRUPTIONS_PER_ATTEMPT:
        return f"interrupted {plan.interruptions} times"
    return None


def _step(plan: OpenPlan, snapshot: Snapshot) -> Step:
    if plan.state is PlanState.TRAINED:
        return Step.EVALUATE
    return Step.TRAIN if snapshot.probe_ready else Step.PROBE


def _forget(snapshot: Snapshot) -> Action | None:
    because = f"{snapshot.forbidden} facts known to what is served were retracted"
    if not snapshot.known:
        return Clear(because=because)
    if snapshot.refused_rebuilds >= REBUILD_TRIES:
        return None
    return rebuild(snapshot, PlanKind.RETRACT, because)


def _learn(snapshot: Snapshot) -> Action | None:
    limits = snapshot.limits
    chosen = _chosen(snapshot.waiting)
    warm = limits.lineage == "warm-start"
    known = snapshot.known if warm else 0
    rank = limits.rank_for(len(chosen) + known)
    kept_rank = 0 if warm else sum(snapshot.ranks)
    if over_budget(kept_rank, rank, limits.rank_budget) or snapshot.no_space:
        if snapshot.refused_rebuilds < REBUILD_TRIES and _worth_rebuilding(snapshot):
            why = "no free directions are left" if snapshot.no_space else "the rank budget is used"
            return rebuild(snapshot, PlanKind.CONSOLIDATE, why)
        if snapshot.no_space or over_budget(kept_rank, rank, limits.max_rank):
            return None
    batches = len({fact.batch for fact in chosen})
    said = f"{len(chosen)} facts of {batches} {'batch' if batches == 1 else 'batches'}"
    if known:
        said += f", beside the {known} known"
    return MakePlan(
        kind=PlanKind.LEARN,
        rank=rank,
        seed=limits.seed + max(fact.tries for fact in chosen),
        because=said,
        replaces=snapshot.lineage if warm else (),
        fact_ids=tuple(fact.id for fact in chosen),
    )


def rebuild(snapshot: Snapshot, kind: PlanKind, because: str) -> MakePlan:
    """One adapter in place of the whole lineage, trained on every valid fact it knows."""
    limits = snapshot.limits
    return MakePlan(
        kind=kind,
        rank=limits.rank_for(snapshot.known),
        seed=limits.seed + snapshot.refused_rebuilds,
        because=because,
        replaces=snapshot.lineage,
    )


def _outgrown(snapshot: Snapshot) -> bool:
    """Whether so many facts were added by warm starts that retraining from scratch keeps more."""
    limits = snapshot.limits
    grown = outgrown(snapshot.scratch_facts, snapshot.added_facts, limits.retrain_at)
    return limits.lineage == "warm-start" and grown


def _worth_rebuilding(snapshot: Snapshot) -> bool:
    limits = snapshot.limits
    rank = limits.rank_for(snapshot.known)
    return bool(snapshot.known) and (
        rank < sum(snapshot.ranks) or (snapshot.no_space and len(snapshot.lineage) > 1)
    )


def _chosen(waiting: tuple[Waiting, ...]) -> tuple[Waiting, ...]:
    first = waiting[0]
    if first.alone:
        return tuple(fact for fact in waiting if fact.batch == first.batch)
    return tuple(takewhile(lambda fact: not fact.alone, waiting))
