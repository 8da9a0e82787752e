"""What a new fact means beside those that stand: the same, a successor, history or a conflict."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from enum import StrEnum

from policies.records import Fact, Operation, Record


class Validity(StrEnum):
    """How an admitted fact stands now."""

    VALID = "valid"
    SUPERSEDED = "superseded"
    RETRACTED = "retracted"


class ConflictPolicy(StrEnum):
    """What happens to another answer for the same key when nothing orders the two."""

    NEWEST = "newest"
    REJECT = "reject"
    ASK = "ask"


class Standing(Record):
    """A fact admitted earlier that competes with the new one (same key, or same explicit id)."""

    id: str
    answer: str
    valid_from: date | datetime | None = None
    validity: Validity = Validity.VALID


class Relation(StrEnum):
    """How the new fact stands to those before it."""

    NEW = "new"
    KNOWN = "known"
    SUPERSEDES = "supersedes"
    HISTORY = "history"
    CONFLICT = "conflict"
    RETRACTS = "retracts"
    NO_TARGET = "no-target"


class Ruling(Record):
    """What to do with a fact: `replaced` are the ids that lose their validity by it."""

    relation: Relation
    replaced: tuple[str, ...] = ()
    reason: str = ""


def moment(value: date | datetime) -> datetime:
    """An instant to order by: a date is its midnight, what has no zone is in UTC."""
    if not isinstance(value, datetime):
        value = datetime.combine(value, time())
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def rule(fact: Fact, rivals: Sequence[Standing], policy: ConflictPolicy) -> Ruling:
    """The meaning of `fact` beside its rivals; `rivals` in the order in which they came."""
    valid = [r for r in rivals if r.validity is Validity.VALID]
    if fact.op is Operation.RETRACT:
        return _retraction(fact, valid)
    same = [r for r in valid if r.answer == fact.answer]
    others = [r for r in valid if r.answer != fact.answer]
    if same and not others:
        return Ruling(relation=Relation.KNOWN, reason=f"already known as {same[-1].id}")
    if not others:
        return _without_rival(fact, rivals)
    replaced = tuple(r.id for r in others)
    if fact.op is Operation.SUPERSEDE:
        return Ruling(relation=Relation.SUPERSEDES, replaced=replaced, reason="said so by its op")
    return _ordered(fact, others, replaced, policy)


def _retraction(fact: Fact, valid: Sequence[Standing]) -> Ruling:
    targets = tuple(r.id for r in valid if not fact.answer or r.answer == fact.answer)
    if targets:
        return Ruling(relation=Relation.RETRACTS, replaced=targets)
    return Ruling(relation=Relation.NO_TARGET, reason="retracts a fact that is not known")


def _without_rival(fact: Fact, rivals: Sequence[Standing]) -> Ruling:
    gone = [r for r in rivals if r.validity is Validity.SUPERSEDED]
    if fact.valid_from is not None and any(
        r.valid_from is not None and moment(r.valid_from) > moment(fact.valid_from) for r in gone
    ):
        return Ruling(relation=Relation.HISTORY, reason="a later answer has been and gone")
    return Ruling(relation=Relation.NEW)


def _ordered(
    fact: Fact, others: Sequence[Standing], replaced: tuple[str, ...], policy: ConflictPolicy
) -> Ruling:
    dated = [moment(r.valid_from) for r in others if r.valid_from is not None]
    if fact.valid_from is not None and len(dated) == len(others):
        since = moment(fact.valid_from)
        if since > max(dated):
            return Ruling(relation=Relation.SUPERSEDES, replaced=replaced, reason="valid later")
        if since < max(dated):
            return Ruling(relation=Relation.HISTORY, reason="a later answer is known")
    if policy is ConflictPolicy.NEWEST:
        return Ruling(relation=Relation.SUPERSEDES, replaced=replaced, reason="received later")
    told = others[-1]
    return Ruling(
        relation=Relation.CONFLICT,
        replaced=replaced,
        reason=f"another answer is known for this ({told.id}) and nothing says which is newer: "
        "give valid_from, or op supersede",
    )
