"""Lines in quarantine, and what would become of lines that are not submitted yet."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Final

from daemon.config.layout import Layout
from daemon.intake.admit import Rules
from daemon.intake.preview import LineVerdict, preview
from daemon.intake.reader import record
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import BadLine
from policies.errors import NotFound
from policies.facts.jsonline import DEFAULT_LIMITS
from policies.records import Record

PIECE: Final = 30
CHECKED: Final = 500


class QuarantineView(Record):
    """`/api/quarantine`: the latest first, of one batch or of all; `before` asks for the piece
    that follows. Of `further` lines of the batch only their numbers by kind are kept.
    """

    batch: str | None
    name: str
    lines: tuple[BadLine, ...]
    total: int
    further: dict[str, int]
    before: int | None = None


class CheckView(Record):
    """`/api/check`: the verdict on each line, as admission would give it now; at most the first
    500. `counts` are by verdict."""

    name: str
    lines: tuple[LineVerdict, ...]
    counts: dict[str, int]
    cut: bool


def quarantine_view(ledger: Ledger, batch: str | None, before: int | None = None) -> QuarantineView:
    """A piece of the quarantine, each line with the beginning of its text."""
    found = None if batch is None else ledger.batches.get(batch)
    of = None if found is None else found.id
    lines = ledger.listings.bad_lines(of, before, PIECE + 1)
    return QuarantineView(
        batch=of,
        name="" if found is None else found.name,
        lines=lines[:PIECE],
        total=ledger.batches.totals()["quarantined"] if found is None else found.quarantined,
        further={} if of is None else ledger.quarantine.numbered(of),
        before=lines[PIECE - 1].place if len(lines) > PIECE else None,
    )


def check_view(ledger: Ledger, path: Path, rules: Rules, now: datetime) -> CheckView:
    """What admission would say of a file's lines; raises `OSError`."""
    lines = list(preview(ledger, path, rules, now, CHECKED + 1))
    shown = lines[:CHECKED]
    return CheckView(
        name=path.name,
        lines=tuple(shown),
        counts=dict(Counter(line.verdict for line in shown)),
        cut=len(lines) > CHECKED,
    )


def bad_line(ledger: Ledger, layout: Layout, batch: str, line: int) -> BadLine:
    """One line with its whole text, which the archive has: the ledger keeps its beginning.

    Raises `NotFound`.
    """
    found = ledger.batches.get(batch)
    kind = ledger.quarantine.kind(found.id, line)
    if kind is None:
        raise NotFound(f"{found.name} has no line {line} in quarantine")
    kept = ledger.quarantine.lines(found.id, 1, first=line)
    known = kept[0] if kept and kept[0].line == line else None
    try:
        text = record(layout.archived(found.id), line, DEFAULT_LIMITS).decode(errors="replace")
    except OSError:
        text = ""
    return BadLine(
        place=1,
        batch=found.id,
        name=found.name,
        line=line,
        kind=kind,
        reason=known.reason if known else f"is quarantined as {kind}",
        text=text or (known.text if known else ""),
    )
