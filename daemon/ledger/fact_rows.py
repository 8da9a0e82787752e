"""A fact as a row of the ledger, and back."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Any, Final

from daemon.ledger.chain import row_digest
from daemon.ledger.database import stamp, unstamp
from daemon.ledger.facts import key_of
from policies.facts.supersession import (
    FactRelation,
    Ruling,
    StandingFact,
    Validity,
    moment,
    stem_of,
)
from policies.records import Fact, Operation, Priority

# What never changes of a fact until it is erased; its digest is of these, in this order.
LASTING: Final = "seq, id, stem, batch, key, answer, body, op, urgent, valid_from, recorded_at"


def stored_id(fact: Fact, seq: int) -> str:
    """The id under which a line is stored; a retracting one has none of its own."""
    return f"~retract~{seq}~{fact.id}" if fact.op is Operation.RETRACT else fact.id


def _validity(ruling: Ruling) -> Validity:
    return Validity.SUPERSEDED if ruling.relation is FactRelation.HISTORY else Validity.VALID


def fact_row(fact: Fact, ruling: Ruling, batch: int, seq: int, recorded: str) -> tuple[Any, ...]:
    """`LASTING`, then validity, valid_until, state, salt and digest, as `facts` has them."""
    validity = _validity(ruling)
    learnable = fact.op is not Operation.RETRACT and validity is Validity.VALID
    lasting = (
        seq,
        stored_id(fact, seq),
        stem_of(fact.id),
        batch,
        key_of(fact),
        fact.answer,
        fact.model_dump_json(exclude_defaults=True),
        fact.op.value,
        int(fact.priority is Priority.URGENT),
        instant(fact.valid_from),
        recorded,
    )
    salt = secrets.token_bytes(16)
    return (
        *lasting,
        validity.value,
        instant(fact.valid_until),
        "pending" if learnable else "idle",
        salt,
        row_digest(salt, lasting),
    )


@lru_cache(maxsize=4096)
def instant(value: date | datetime | None) -> str | None:
    """A moment as it is stored; a day is its first moment, in UTC."""
    return None if value is None else stamp(moment(value))


def standing(row: Sequence[Any]) -> StandingFact:
    """A fact as the rules of supersession see it."""
    identity, answer, since, until, validity = row
    return StandingFact(
        id=identity,
        answer=answer,
        valid_from=None if since is None else unstamp(since),
        valid_until=None if until is None else unstamp(until),
        validity=Validity(validity),
    )
