"""What of the stored files may be removed: never what something that may still happen needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from policies.records import OPEN_STATES, BatchState, PlanState, Record

SHORT: Final = 12
UNDECIDED: Final = OPEN_STATES | {PlanState.INCONCLUSIVE}
UNSETTLED: Final = (BatchState.WAITING, BatchState.LEARNING, BatchState.INCONCLUSIVE)
HALF_DAYS: Final = 1


class StoredKind(StrEnum):
    """What kind of file or directory an item is; with its name it says where that lies."""

    ARCHIVE = "archive"
    ADAPTER = "adapter"
    REVISION = "revision"
    ANSWERS = "answers"
    WORK = "work"
    RECEIPT = "receipt"
    HALF = "half"


class StoredItem(Record):
    """One thing on the disk: the bytes that it takes, and when it was changed last.

    Adapters, revisions and answers have the names of their directories, archives the ids of their
    batches, work directories those of their plan and step, receipts those of their file.
    """

    kind: StoredKind
    name: str
    bytes: int = Field(default=0, ge=0)
    changed_at: datetime


class Removal(Record):
    """An item that may go, and why."""

    kind: StoredKind
    name: str
    bytes: int = 0
    because: str


class KeepLimits(BaseModel):
    """How much and how long things are kept; these fields are part of [keep]."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    revisions: int = Field(default=10, ge=1)
    """How many revisions before the target, and how many of the newest, keep their files: to these
    `palorad rollback` and `forward` can go."""
    rejected_days: int = Field(default=30, ge=0)
    """How long the adapter of a rejected, cancelled or failed plan is kept; 0: for ever."""
    archive_days: int = Field(default=0, ge=0)
    """How long the bytes of a batch are kept once it is at rest with no line in quarantine; 0: for
    ever."""
    answers_days: int = Field(default=90, ge=0)
    """How long the answers of a model are kept that cannot be served any more; 0: for ever."""
    work_days: int = Field(default=14, ge=0)
    """How long a decided plan's working directories are kept, with the logs of its children; 0: for
    ever."""
    receipts_days: int = Field(default=30, ge=0)
    """How long a receipt is kept once its batch is at rest and its file is gone; 0: for ever."""


class KnownRevision(Record):
    """A row of the ledger; `lineage` holds the hashes of its adapters, `sha256` that of its own
    files."""

    number: int
    parent: int | None
    name: str
    lineage: tuple[str, ...]
    sha256: str | None


class KnownPlan(Record):
    """A row of the ledger; `served` and `sha256` are name and hash of its candidate."""

    id: int
    state: PlanState
    parent: int
    adapter: str | None = None
    served: str | None = None
    sha256: str | None = None
    moved_at: datetime


class KnownBatch(Record):
    """A row of the ledger, of a batch that has been admitted whole."""

    id: str
    name: str
    received_at: datetime
    state: BatchState
    quarantined: int = 0

    @property
    def at_rest(self) -> bool:
        """Whether nothing that was begun with it goes on, and no person is asked."""
        return self.state not in UNSETTLED


class Holdings(Record):
    """All that is needed to say what may go.

    `running` are plans with a child at work, `serving` names that replicas have loaded or the alias
    stands for. What a retraction that is not certified will delete itself is in `tainted`: hashes
    of adapters, names of revisions, hashes of models.
    """

    now: datetime
    target: int
    base: str | None = None
    revisions: tuple[KnownRevision, ...]
    plans: tuple[KnownPlan, ...] = ()
    batches: tuple[KnownBatch, ...] = ()
    running: frozenset[int] = frozenset()
    serving: frozenset[str] = frozenset()
    tainted: frozenset[str] = frozenset()


def removable(
    standing: Holdings, items: Sequence[StoredItem], limits: KeepLimits
) -> tuple[Removal, ...]:
    """The items that nothing needs and that were kept long enough, each with the reason."""
    rules = _Rules(standing, limits)
    return tuple(
        Removal(kind=item.kind, name=item.name, bytes=item.bytes, because=because)
        for item in items
        if (because := rules.of(item)) is not None
    )


def within_reach(standing: Holdings, revisions: int) -> frozenset[int]:
    """Numbers of the revisions that can be made the target: the target, as many before it, the
    newest ones, and what was built on the target last."""
    by_number = {revision.number: revision for revision in standing.revisions}
    found: set[int] = set()
    number: int | None = standing.target
    while number in by_number and len(found) <= revisions:
        found.add(number)
        number = by_number[number].parent
    found |= {*sorted(by_number)[-revisions:]}
    built_on = [r.number for r in standing.revisions if r.parent == standing.target]
    return frozenset(found | {max(built_on, default=standing.target)})


class _Rules:
    def __init__(self, standing: Holdings, limits: KeepLimits) -> None:
        self._standing = standing
        self._limits = limits
        self._rules: Mapping[StoredKind, Callable[[StoredItem], str | None]] = {
            StoredKind.ARCHIVE: self._archive,
            StoredKind.ADAPTER: self._adapter,
            StoredKind.REVISION: self._revision,
            StoredKind.ANSWERS: self._answers,
            StoredKind.WORK: self._work,
            StoredKind.RECEIPT: self._receipt,
            StoredKind.HALF: self._half,
        }
        self._plans = {str(plan.id): plan for plan in standing.plans}
        self._batches = {batch.id: batch for batch in standing.batches}
        self._batches_by_name: dict[str, list[KnownBatch]] = {}
        for batch in standing.batches:
            self._batches_by_name.setdefault(batch.name, []).append(batch)

    def of(self, item: StoredItem) -> str | None:
        """Why an item may go; None if it may not."""
        return self._rules[item.kind](item)

    # --- what is needed ------------------------------------------------------------------------

    @cached_property
    def _reach(self) -> tuple[KnownRevision, ...]:
        """Revisions that can be served again, or that some replica serves."""
        numbers = within_reach(self._standing, self._limits.revisions)
        numbers |= {plan.parent for plan in self._undecided}
        serving = self._standing.serving
        return tuple(
            r for r in self._standing.revisions if r.number in numbers or r.name in serving
        )

    @cached_property
    def _undecided(self) -> tuple[KnownPlan, ...]:
        """Plans that are under way, or that a person may let go live."""
        return tuple(
            plan
            for plan in self._standing.plans
            if plan.state in UNDECIDED or plan.id in self._standing.running
        )

    @cached_property
    def _needed_names(self) -> frozenset[str]:
        candidates = {plan.served for plan in self._undecided if plan.served}
        return self._standing.serving | {r.name for r in self._reach} | candidates

    @cached_property
    def _needed_adapters(self) -> frozenset[str]:
        found = {sha for revision in self._reach for sha in revision.lineage}
        return _short(found | {plan.adapter for plan in self._undecided if plan.adapter})

    @cached_property
    def _needed_models(self) -> frozenset[str]:
        models = [self._standing.base, *(revision.sha256 for revision in self._reach)]
        return _short(sha for sha in (*models, *(p.sha256 for p in self._undecided)) if sha)

    @cached_property
    def _tainted(self) -> frozenset[str]:
        return self._standing.tainted | _short(self._standing.tainted)

    # --- one rule for each kind ----------------------------------------------------------------

    def _revision(self, item: StoredItem) -> str | None:
        if item.name in self._needed_names or item.name in self._tainted:
            return None
        for revision in self._standing.revisions:
            if revision.name == item.name:
                return f"revision {revision.number} is beyond keep.revisions"
        plans = [plan for plan in self._standing.plans if plan.served == item.name]
        return self._candidate(item, plans)

    def _adapter(self, item: StoredItem) -> str | None:
        if item.name in self._needed_adapters or item.name in self._tainted:
            return None
        for revision in reversed(self._standing.revisions):
            if item.name in _short(revision.lineage):
                return f"its last revision, {revision.number}, is beyond keep.revisions"
        plans = [p for p in self._standing.plans if p.adapter and p.adapter[:SHORT] == item.name]
        return self._candidate(item, plans)

    def _candidate(self, item: StoredItem, plans: Sequence[KnownPlan]) -> str | None:
        """What was published and never went live."""
        if not plans:
            # A child may have published it and not told yet.
            idle = not self._undecided and not self._standing.running
            old = idle and self._older(self._limits.rejected_days, item.changed_at)
            return "no plan knows it" if old else None
        last = max(plans, key=lambda plan: plan.moved_at)
        if self._older(self._limits.rejected_days, max(last.moved_at, item.changed_at)):
            return f"plan {last.id} is {last.state.value} for keep.rejected_days"
        return None

    def _answers(self, item: StoredItem) -> str | None:
        if item.name in self._needed_models or item.name in self._tainted:
            return None
        if self._older(self._limits.answers_days, item.changed_at):
            return "no revision within reach gave them, and keep.answers_days are over"
        return None

    def _work(self, item: StoredItem) -> str | None:
        plan = self._plans.get(item.name.partition("-")[0])
        if plan is None or plan in self._undecided:
            return None
        if self._older(self._limits.work_days, max(plan.moved_at, item.changed_at)):
            return f"plan {plan.id} is {plan.state.value} for keep.work_days"
        return None

    def _archive(self, item: StoredItem) -> str | None:
        batch = self._batches.get(item.name)
        if batch is None or not batch.at_rest or batch.quarantined:
            return None
        if self._older(self._limits.archive_days, max(batch.received_at, item.changed_at)):
            return f"its batch is {batch.state.value} for keep.archive_days"
        return None

    def _receipt(self, item: StoredItem) -> str | None:
        batches = self._batches_by_name.get(item.name.rsplit(".", 2)[0], [])
        at_rest = all(batch.at_rest for batch in batches)
        if at_rest and self._older(self._limits.receipts_days, item.changed_at):
            return "it has not changed for keep.receipts_days"
        return None

    def _half(self, item: StoredItem) -> str | None:
        if self._standing.running or not self._older(HALF_DAYS, item.changed_at):
            return None
        return "a child that was killed left it half made"

    def _older(self, days: int, moment: datetime) -> bool:
        return bool(days) and self._standing.now - moment > timedelta(days=days)


def _short(hashes: Iterable[str]) -> frozenset[str]:
    return frozenset(sha[:SHORT] for sha in hashes)
