"""What would become of a file, line by line, before it is submitted; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from daemon.intake.admit import Rules, read_record
from daemon.intake.reader import Records
from daemon.ledger.ledger import Ledger
from policies.facts.supersession import FactRelation, rule_each
from policies.records import Fact, Quarantined, Record

PIECE_BYTES: Final = 1 << 20
BAD: Final = "quarantined"


class LineVerdict(Record):
    """One line: its relation to what is known ("new", "known", "supersedes", …), or "quarantined"
    with the kind of fault. `replaced` are the facts whose place it takes."""

    line: int
    verdict: str
    kind: str = ""
    reason: str = ""
    prompt: str = ""
    answer: str = ""
    subject: str = ""
    relation: str = ""
    replaced: tuple[str, ...] = ()
    trained: int = 0
    held_out: int = 0


def preview(
    ledger: Ledger, path: Path, rules: Rules, now: datetime, most: int
) -> Iterator[LineVerdict]:
    """The verdict of admission on each of the first `most` lines; raises `OSError`."""
    with path.open("rb") as source:
        records = Records(source, rules.limits)
        parsed: list[tuple[int, Fact | Quarantined]] = []
        while len(parsed) < most and (taken := records.take(most - len(parsed), PIECE_BYTES)):
            read = ((raw.number, read_record(records, raw, rules)) for raw in taken)
            parsed += [(number, found) for number, found in read if found is not None]
    facts = [found for _, found in parsed if isinstance(found, Fact)]
    ruled = iter(rule_each(facts, ledger.admission.rivals(facts), rules.conflicts, now))
    for number, found in parsed:
        if isinstance(found, Quarantined):
            yield LineVerdict(line=number, verdict=BAD, kind=found.kind, reason=found.reason)
            continue
        fact, ruling = next(ruled)
        bad = ruling.relation in (FactRelation.CONFLICT, FactRelation.NO_TARGET)
        yield LineVerdict(
            line=number,
            verdict=BAD if bad else ruling.relation.value,
            kind=ruling.relation.value if bad else "",
            reason=ruling.reason,
            prompt=fact.prompt,
            answer=fact.answer,
            subject=fact.subject or "",
            relation=fact.relation or "",
            replaced=ruling.replaced,
            trained=len(fact.training_prompts),
            held_out=len(fact.eval_prompts),
        )
