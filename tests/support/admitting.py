"""Batches that come into a ledger the way intake brings them in, without a file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Admitted
from policies.facts.supersession import ConflictPolicy, rule_each
from policies.records import Batch, Fact, Quarantined


def admit(
    ledger: Ledger,
    batch: Batch,
    facts: Sequence[Fact],
    quarantined: Sequence[Quarantined] = (),
    *,
    now: datetime | None = None,
) -> Admitted:
    """Begin the batch, append its facts as what they mean beside those admitted, finish it."""
    at = now or batch.received_at
    ledger.admission.begin_batch(batch)
    ruled = rule_each(facts, ledger.admission.rivals(facts), ConflictPolicy.NEWEST, at)
    lines = len(facts) + len(quarantined)
    ledger.admission.append_facts(batch.id, ruled, quarantined, at, line=lines)
    return ledger.admission.finish_batch(batch.id, at)
