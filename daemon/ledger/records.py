"""What the ledger takes and gives beside the shared records."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from policies.notifications import Notification
from policies.planning import Step
from policies.records import Batch, PlanKind, PlanState, Record


class Adapter(Record):
    """One trained LoRA as published in the store; its hash says where."""

    sha256: str
    rank: int


class Served(Record):
    """One composed revision as published: its immutable name, which is also that of its
    directory, and its content hash."""

    name: str
    sha256: str


class Admitted(Record):
    """What became of a batch's facts; `already` if the same bytes had been admitted before.

    `known` of the accepted facts say nothing new; `conflicts` were not admitted because another
    answer stands and the policy does not choose.
    """

    batch: Batch
    already: bool = False
    known: int = 0
    conflicts: int = 0


class Arriving(Record):
    """How far a batch has been read: the next line's number and byte offset.

    `signature` tells the dropped file that it came from from a later one of the same name;
    `cursor` is the place of the feed that it came from, committed with the end of the batch;
    `aside` says why it was set aside, if it was.
    """

    batch: Batch
    complete: bool = False
    line: int = 0
    position: int = 0
    signature: str = ""
    cursor: str = ""
    aside: str = ""


class PlanHead(Record):
    """A plan without the lists of its facts and batches, which may be long."""

    id: int
    kind: PlanKind
    state: PlanState
    parent: int
    replaces: tuple[str, ...] = ()
    facts: int = 0
    replays: int = 0
    rank: int
    seed: int
    attempts: int = 0
    interruptions: int = 0
    not_before: datetime | None = None
    adapter: str | None = None
    served: Served | None = None
    because: str = ""
    error: str | None = None
    error_kind: str | None = None
    created_at: datetime
    moved_at: datetime


class Lease(Record):
    """A child that was started: `pid_started` tells it from a later process with its pid."""

    plan: int
    step: Step
    pid: int
    pid_started: str
    deadline: datetime
    started_at: datetime

    @property
    def allowed_s(self) -> float:
        """How many seconds it may take; both moments are of one clock, right or wrong."""
        return (self.deadline - self.started_at).total_seconds()


class Event(Record):
    """One line of history; `hash` covers it and the one before."""

    seq: int
    at: datetime
    kind: str
    subject: str
    payload: dict[str, Any]
    prev_hash: str
    hash: str


class Outgoing(Record):
    """A notification in the outbox; `error` is why the receiver has not taken it."""

    type: Notification
    event: Event
    attempts: int = 0
    error: str = ""


class Retraction(Record):
    """One retracted fact on its way out.

    `fact` is its place in the ledger, `id` its name until it is erased (then `salt` and `digest`
    still tell whether a name was its own). `last_batch` is the place of the last batch that had
    come when it was asked for. `served` says whether the target lineage knows it.
    """

    handle: str
    fact: int
    id: str | None
    salt: str
    digest: str
    because: str
    asked_at: datetime
    last_batch: int = 0
    unloaded_at: datetime | None = None
    erased_at: datetime | None = None
    certified_at: datetime | None = None
    served: bool = False
    certificate: dict[str, Any] | None = None


class Tainted(Record):
    """What knows a retracted fact: the hashes of adapters, names under which revisions and
    candidates were served, and the content hashes behind those names."""

    adapters: tuple[str, ...]
    served: tuple[str, ...]
    models: tuple[str, ...]


class FactPlan(Record):
    """A plan that had a fact: whether its candidate learnt it (None: not judged), the adapter and
    the revision that it made."""

    plan: int
    kind: PlanKind
    state: PlanState
    learnt: bool | None
    moved_at: datetime
    adapter: str | None
    revision: int | None


class BadLine(Record):
    """One line in quarantine with the batch that it came in; `place` orders all of them."""

    place: int
    batch: str
    name: str
    line: int
    kind: str
    reason: str
    text: str


class FactCounts(Record):
    """How many facts of a batch stand where; `idle` ones are not to be learnt."""

    pending: int = 0
    planned: int = 0
    done: int = 0
    unlearnt: int = 0
    rejected: int = 0
    idle: int = 0
