"""The frozen records that travel between the parts."""

from __future__ import annotations

import hashlib
from datetime import date, datetime
from enum import StrEnum
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen value; equal records are interchangeable."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# --- facts -----------------------------------------------------------------------------------


class Operation(StrEnum):
    """What a line asks for."""

    ASSERT = "assert"
    SUPERSEDE = "supersede"
    RETRACT = "retract"


class Priority(StrEnum):
    """Which lane a fact takes."""

    NORMAL = "normal"
    URGENT = "urgent"


class Fact(Record):
    """One fact as admitted: a question, its answer and the paraphrases to learn and to judge it in.

    `paraphrases` are trained; `eval_prompts` never are. `id` is the explicit id of the line or
    is derived from what the fact says, so that the same fact dropped twice is one fact.
    """

    id: str
    prompt: str
    answer: str
    subject: str | None = None
    relation: str | None = None
    paraphrases: tuple[str, ...] = ()
    eval_prompts: tuple[str, ...] = ()
    statement: str | None = None
    valid_from: date | datetime | None = None
    valid_until: date | datetime | None = None
    source: str | None = None
    op: Operation = Operation.ASSERT
    priority: Priority = Priority.NORMAL

    @property
    def key(self) -> tuple[str, ...]:
        """What the fact is about: two facts with one key compete for one answer."""
        return key_of(self.prompt, self.subject, self.relation)

    @property
    def training_prompts(self) -> tuple[str, ...]:
        """The paraphrases it is trained in; never one that the gate asks."""
        held_out = set(self.eval_prompts)
        return tuple(
            p for p in dict.fromkeys((self.prompt, *self.paraphrases)) if p not in held_out
        )


def key_of(prompt: str, subject: str | None, relation: str | None) -> tuple[str, ...]:
    """What a fact is about: its subject and relation, or its prompt if one of them is missing."""
    if subject and relation:
        return (subject.casefold(), relation.casefold())
    return (prompt.strip().casefold(),)


class Outline(NamedTuple):
    """Of a fact what it takes to draw it for the gate; light, since it is drawn of thousands."""

    id: str
    key: tuple[str, ...]
    subject: str | None
    op: Operation = Operation.ASSERT


INBOX: Final = "inbox"
FEED: Final = "feed:"


class Batch(Record):
    """The facts of one dropped file or one poll of a feed; `id` is the hash of its bytes.

    `source` is `INBOX`, or `FEED` and the name of the feed.
    """

    id: str
    name: str
    received_at: datetime
    source: str
    accepted: int = Field(ge=0)
    quarantined: int = Field(ge=0)

    @property
    def feed(self) -> str | None:
        """The name of the feed that it came from; none of a dropped file."""
        return self.source.removeprefix(FEED) if self.source.startswith(FEED) else None


class Quarantined(Record):
    """One line that was not admitted; `text` is its beginning, `kind` a stable word for why."""

    line: int = Field(ge=1)
    kind: str
    reason: str
    text: str = ""


class BatchState(StrEnum):
    """Where a batch stands, derived from its plans."""

    WAITING = "waiting"
    LEARNING = "learning"
    LIVE = "live"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    FAILED = "failed"
    ROLLED_BACK = "rolled-back"
    EMPTY = "empty"


# --- plans and revisions ----------------------------------------------------------------------


class PlanKind(StrEnum):
    """Why an adapter is trained."""

    LEARN = "learn"
    CONSOLIDATE = "consolidate"
    RETRACT = "retract"


class PlanState(StrEnum):
    """What is durably true of a plan; work under way is a lease, not a state."""

    PLANNED = "planned"
    TRAINED = "trained"
    PASSED = "passed"
    CANARY = "canary"
    LIVE = "live"
    ROLLED_BACK = "rolled-back"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    CANCELLED = "cancelled"
    FAILED = "failed"


OPEN_STATES = frozenset({PlanState.PLANNED, PlanState.TRAINED, PlanState.PASSED, PlanState.CANARY})

TRANSITIONS: dict[PlanState, frozenset[PlanState]] = {
    PlanState.PLANNED: frozenset({PlanState.TRAINED, PlanState.CANCELLED, PlanState.FAILED}),
    PlanState.TRAINED: frozenset(
        {
            PlanState.PASSED,
            PlanState.REJECTED,
            PlanState.INCONCLUSIVE,
            PlanState.CANCELLED,
            PlanState.FAILED,
        }
    ),
    PlanState.PASSED: frozenset(
        {PlanState.LIVE, PlanState.CANARY, PlanState.CANCELLED, PlanState.FAILED}
    ),
    PlanState.CANARY: frozenset(
        {PlanState.LIVE, PlanState.REJECTED, PlanState.CANCELLED, PlanState.FAILED}
    ),
    PlanState.LIVE: frozenset({PlanState.ROLLED_BACK}),
    PlanState.ROLLED_BACK: frozenset({PlanState.LIVE}),
    PlanState.INCONCLUSIVE: frozenset({PlanState.PASSED, PlanState.REJECTED, PlanState.CANCELLED}),
    PlanState.REJECTED: frozenset(),
    PlanState.CANCELLED: frozenset(),
    PlanState.FAILED: frozenset({PlanState.PLANNED}),
}


class Plan(Record):
    """One reason to train one adapter: the unit of work.

    `parent` is the revision it builds on (0 is the base), `replaces` the adapters of that
    revision's lineage that the new adapter takes the place of: all for `consolidate` and
    `retract`, all or none for `learn`. `fact_ids` are those that a `learn` plan learns; what it
    replays, and what a rebuild learns, follows from `replaces` and `parent`.
    """

    id: int
    kind: PlanKind
    state: PlanState
    parent: int
    replaces: tuple[str, ...] = ()
    fact_ids: tuple[str, ...] = ()
    rank: int = Field(gt=0)
    seed: int
    attempts: int = 0
    not_before: datetime | None = None
    adapter: str | None = None
    because: str = ""
    created_at: datetime


class Revision(Record):
    """What can be served: an ordered lineage of adapters composed into one LoRA. 0 is the base."""

    number: int = Field(ge=0)
    plan_id: int | None
    parent: int | None
    lineage: tuple[str, ...]
    served_name: str
    sha256: str | None
    created_at: datetime


# --- training ---------------------------------------------------------------------------------


class Example(Record):
    """A prompt and its completion that is not a fact: reasoning or known text for replay."""

    prompt: str
    completion: str
    kind: Literal["reasoning", "known"] = "reasoning"


def content_id(*parts: str) -> str:
    """Sixteen hex digits of the SHA-256 over the parts, each ended by a zero byte."""
    text = "\0".join(parts) + "\0"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
