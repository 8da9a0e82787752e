"""What a new fact means beside those that stand: the same, a successor, history or a conflict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from enum import StrEnum
from typing import Final

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


class StandingFact(Record):
    """A fact admitted earlier that competes with the new one (same key, or same explicit id)."""

    id: str
    answer: str
    valid_from: date | datetime | None = None
    valid_until: date | datetime | None = None
    validity: Validity = Validity.VALID

    def holds(self, now: datetime) -> bool:
        """Whether it is valid and has not run out."""
        ended = self.valid_until is not None and moment(self.valid_until) <= now
        return self.validity is Validity.VALID and not ended


class FactRelation(StrEnum):
    """How the new fact stands to those before it."""

    NEW = "new"
    KNOWN = "known"
    SUPERSEDES = "supersedes"
    HISTORY = "history"
    CONFLICT = "conflict"
    RETRACTS = "retracts"
    NO_TARGET = "no-target"


class Ruling(Record):
    """What to do with a fact: `replaced` are the ids that lose their validity by it, `until` is
    when an answer that is known already takes its place.
    """

    relation: FactRelation
    replaced: tuple[str, ...] = ()
    reason: str = ""
    until: datetime | None = None


_ASSERT: Final = Operation.ASSERT
_NEW: Final = Ruling(relation=FactRelation.NEW)


def moment(value: date | datetime) -> datetime:
    """An instant to order by: a date is its midnight, what has no zone is in UTC."""
    if not isinstance(value, datetime):
        value = datetime.combine(value, time())
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def rule(
    fact: Fact, rivals: Sequence[StandingFact], policy: ConflictPolicy, now: datetime
) -> Ruling:
    """The meaning of `fact` beside its rivals; `rivals` in the order in which they came."""
    valid = [r for r in rivals if r.holds(now)]
    if fact.op is Operation.RETRACT:
        return _retraction(fact, rivals)
    same = [r for r in valid if r.answer == fact.answer]
    others = [r for r in valid if r.answer != fact.answer]
    if same:
        return Ruling(relation=FactRelation.KNOWN, reason=f"already known as {same[-1].id}")
    if not others:
        return _without_rival(fact, rivals)
    replaced = tuple(r.id for r in others)
    if fact.op is Operation.SUPERSEDE:
        return Ruling(
            relation=FactRelation.SUPERSEDES, replaced=replaced, reason="said so by its op"
        )
    return _ordered(fact, others, replaced, policy, now)


def _retraction(fact: Fact, rivals: Sequence[StandingFact]) -> Ruling:
    """What was superseded goes too: it may have been learnt, and is to be forgotten."""
    known = (r for r in rivals if r.validity is not Validity.RETRACTED)
    targets = tuple(r.id for r in known if not fact.answer or r.answer == fact.answer)
    if targets:
        return Ruling(relation=FactRelation.RETRACTS, replaced=targets)
    return Ruling(
        relation=FactRelation.NO_TARGET,
        reason="retracts a fact that is not known; name it by its id, or its subject and relation",
    )


def _without_rival(fact: Fact, rivals: Sequence[StandingFact]) -> Ruling:
    gone = [r for r in rivals if r.validity is not Validity.RETRACTED]
    if fact.valid_from is not None and any(
        r.valid_from is not None and moment(r.valid_from) > moment(fact.valid_from) for r in gone
    ):
        return Ruling(relation=FactRelation.HISTORY, reason="a later answer has been and gone")
    return Ruling(relation=FactRelation.NEW)


def _ordered(
    fact: Fact,
    others: Sequence[StandingFact],
    replaced: tuple[str, ...],
    policy: ConflictPolicy,
    now: datetime,
) -> Ruling:
    dated = [moment(r.valid_from) for r in others if r.valid_from is not None]
    if fact.valid_from is not None and len(dated) == len(others):
        since = moment(fact.valid_from)
        if since > max(dated):
            return Ruling(relation=FactRelation.SUPERSEDES, replaced=replaced, reason="valid later")
        if since < max(dated):
            return _before(since, others, now)
    if policy is ConflictPolicy.NEWEST:
        return Ruling(relation=FactRelation.SUPERSEDES, replaced=replaced, reason="received later")
    standing = others[-1]
    return Ruling(
        relation=FactRelation.CONFLICT,
        replaced=replaced,
        reason=f"another answer is known for this ({standing.id}) and nothing says which is newer: "
        "give valid_from, or op supersede",
    )


def _before(since: datetime, others: Sequence[StandingFact], now: datetime) -> Ruling:
    """A fact that a dated answer follows: history, unless that answer is still to come."""
    begins = {r.id: moment(r.valid_from) for r in others if r.valid_from is not None}
    until = min(begin for begin in begins.values() if begin > since)
    if until <= now:
        return Ruling(relation=FactRelation.HISTORY, reason="a later answer is known")
    replaced = tuple(name for name, begin in begins.items() if begin <= since)
    return Ruling(
        relation=FactRelation.SUPERSEDES if replaced else FactRelation.NEW,
        replaced=replaced,
        reason="valid until the answer that is known to follow",
        until=until,
    )


def rule_each(
    facts: Sequence[Fact],
    rivals: Sequence[Sequence[StandingFact]],
    policy: ConflictPolicy,
    now: datetime,
) -> list[tuple[Fact, Ruling]]:
    """What each fact means beside its rivals in the ledger and those before it in `facts`.

    `rivals` holds for each fact those with its key or its id. An id that is taken by another
    answer, or by one that is no longer valid, becomes the next version of it: `id~2`. A fact
    that is followed by an answer still to come ends when that begins.
    """
    gone: dict[str, Validity] = {}
    fresh: defaultdict[tuple[str, ...], dict[str, tuple[Fact, Ruling]]] = defaultdict(dict)
    found: list[tuple[Fact, Ruling]] = []
    for fact, stored in zip(facts, rivals, strict=True):
        about, named = fact.key, stem_of(fact.id)
        names = (about, ("", named, ""))
        if not stored and fact.op is _ASSERT and about not in fresh and names[1] not in fresh:
            ruled, ruling = fact, _NEW
        else:
            beside = {s.id: s for s in stored}
            for name in names:
                beside.update({i: _standing(*pair) for i, pair in fresh.get(name, {}).items()})
            ruled, ruling = _versioned(fact, [_now(s, gone) for s in beside.values()], policy, now)
        found.append((ruled, ruling))
        if ruling.relation in (FactRelation.SUPERSEDES, FactRelation.RETRACTS) and not to_come(
            fact, now
        ):
            gone.update(dict.fromkeys(ruling.replaced, lost_by(fact)))
        if ruling.relation in (FactRelation.NEW, FactRelation.SUPERSEDES, FactRelation.HISTORY):
            for name in names:
                fresh[name][ruled.id] = (ruled, ruling)
    return found


def stem_of(identity: str) -> str:
    """The id as it was given, of which a stored id may be a later version."""
    return identity.split("~", 1)[0]


def version_of(identity: str) -> int:
    """Which version of its stem an id names, from 1."""
    return int(identity.partition("~")[2] or 1)


def version_id(stem: str, version: int) -> str:
    """The id of a version, from 1; the first has no number."""
    return stem if version == 1 else f"{stem}~{version}"


def to_come(fact: Fact, now: datetime) -> bool:
    """Whether it comes to hold only later, so that what it replaces stays valid until then."""
    asserted = fact.op is not Operation.RETRACT
    return asserted and fact.valid_from is not None and moment(fact.valid_from) > now


def lost_by(fact: Fact) -> Validity:
    """What a fact makes of those it replaces."""
    return Validity.RETRACTED if fact.op is Operation.RETRACT else Validity.SUPERSEDED


def _versioned(
    fact: Fact, beside: Sequence[StandingFact], policy: ConflictPolicy, now: datetime
) -> tuple[Fact, Ruling]:
    versions = [s for s in beside if stem_of(s.id) == fact.id]
    if fact.op is Operation.RETRACT:
        return fact, rule(fact, versions or beside, policy, now)
    for standing in versions:
        if _says_the_same(fact, standing, now):
            return fact, Ruling(
                relation=FactRelation.KNOWN, reason=f"already known as {standing.id}"
            )
    ruling = rule(fact, beside, policy, now)
    if ruling.until is not None and (
        fact.valid_until is None or moment(fact.valid_until) > ruling.until
    ):
        fact = fact.model_copy(update={"valid_until": ruling.until})
    if versions:
        last = max(version_of(s.id) for s in versions)
        fact = fact.model_copy(update={"id": version_id(fact.id, last + 1)})
    return fact, ruling


def _says_the_same(fact: Fact, standing: StandingFact, now: datetime) -> bool:
    if standing.answer != fact.answer:
        return False
    if standing.holds(now):
        return True
    dated = fact.valid_from is not None and standing.valid_from is not None
    return (
        standing.validity is not Validity.RETRACTED
        and dated
        and moment(standing.valid_from or date.min) == moment(fact.valid_from or date.min)
    )


def _now(standing: StandingFact, gone: dict[str, Validity]) -> StandingFact:
    if standing.id not in gone:
        return standing
    return standing.model_copy(update={"validity": gone[standing.id]})


def _standing(fact: Fact, ruling: Ruling) -> StandingFact:
    history = ruling.relation is FactRelation.HISTORY
    return StandingFact(
        id=fact.id,
        answer=fact.answer,
        valid_from=fact.valid_from,
        valid_until=fact.valid_until,
        validity=Validity.SUPERSEDED if history else Validity.VALID,
    )
