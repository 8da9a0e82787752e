"""A batch from a file or a feed: begun once its bytes are archived, then admitted in pieces."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from adapters import files
from daemon.base import faults
from daemon.config.layout import Layout
from daemon.config.paraphrases import paraphrase_policy
from daemon.config.sections import IntakeSettings
from daemon.intake.reader import Raw, Records
from daemon.intake.tokens import TokenLimit
from daemon.ledger.admission import KEPT
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Arriving
from policies.errors import LedgerBusy, LedgerUnusable, NotFound
from policies.facts.admission import Format, quarantined, unexpected
from policies.facts.jsonline import DEFAULT_LIMITS, LineLimits
from policies.facts.supersession import ConflictPolicy, FactRelation, Ruling, rule_each
from policies.records import Batch, Fact, Quarantined

PIECE_LINES: Final = 1000
PIECE_BYTES: Final = 1 << 20
AT_ONCE: Final = 100
# Faults of the machine, not of a line: they pass.
_ELSEWHERE: Final = (OSError, MemoryError, LedgerBusy, LedgerUnusable)

log = structlog.get_logger(__name__)


def any_length(_fact: Fact) -> str | None:
    """No limit of tokens: the model is not known."""
    return None


@dataclass(frozen=True, slots=True)
class Rules:
    """How lines become facts; `paraphrased` gives a fact what it is learnt and judged in."""

    paraphrased: Callable[[Fact], Fact]
    limits: LineLimits = DEFAULT_LIMITS
    fmt: Format = Format.AUTO
    conflicts: ConflictPolicy = ConflictPolicy.NEWEST
    kept: int = KEPT
    too_long: Callable[[Fact], str | None] = any_length


def rules_of(settings: IntakeSettings, model_dir: Path | None = None) -> Rules:
    """The rules that the settings say, for facts that the model in `model_dir` is to learn."""
    return Rules(
        paraphrased=paraphrase_policy(settings).for_admission,
        limits=LineLimits(line_bytes=settings.max_line_kb * 1024),
        fmt=settings.format,
        conflicts=settings.conflicts,
        kept=settings.max_quarantined,
        too_long=any_length if model_dir is None else TokenLimit(model_dir, settings.max_tokens),
    )


def begin(
    ledger: Ledger,
    layout: Layout,
    body: Path,
    batch: Batch,
    *,
    signature: str = "",
    cursor: str = "",
    instead: tuple[str, int] | None = None,
) -> Arriving:
    """Begin a batch whose bytes lie in `body`, synced: into the archive, then into the ledger.

    Every batch begins here, a file's with the `signature` of the file (and `instead` of which
    former lines it comes), a feed's with the `cursor` that it was read up to. From here on it
    needs nothing but the archive and the ledger: `admit` resumes it after any crash. Raises
    `OSError` and the ledger's errors.
    """
    files.put_in_place(body, layout.archived(batch.id))
    faults.point("intake:archived")
    return ledger.admission.begin_batch(batch, signature=signature, cursor=cursor, instead=instead)


def admit(
    ledger: Ledger, layout: Layout, arriving: Arriving, rules: Rules, now: Callable[[], datetime]
) -> Iterator[None]:
    """Admit what the ledger does not have yet of a batch; pauses within each piece.

    The last transaction makes the batch whole and commits its feed's cursor. Raises `OSError` and
    the ledger's errors; what was committed before stays, and the next call resumes behind it.
    """
    batch, archived = arriving.batch, layout.archived(arriving.batch.id)
    yield None
    with archived.open("rb") as source:
        records = Records(source, rules.limits, arriving.line, arriving.position)
        begins = records.number, records.position
        while taken := records.take(PIECE_LINES, PIECE_BYTES):
            read = []
            for number, raw in enumerate(taken, start=1):
                read.append((raw, read_record(records, raw, rules)))
                if number % AT_ONCE == 0:
                    yield None
            try:
                _admit(ledger, batch.id, records, read, rules, now())
            except _ELSEWHERE:
                raise
            except Exception:
                log.exception("intake.line_by_line", batch=batch.id, after=begins[0])
                for _ in taken:
                    begins = _admit_alone(ledger, batch.id, archived, begins, rules, now())
                    yield None
            begins = records.number, records.position
            yield None
    ledger.admission.finish_batch(batch.id, now())


def _admit(
    ledger: Ledger,
    batch_id: str,
    records: Records,
    read: list[tuple[Raw, Fact | Quarantined | None]],
    rules: Rules,
    now: datetime,
) -> None:
    """Records that have been read go into the ledger together with the place behind them."""
    admitted, bad = _rule(ledger, read, rules, now)
    ledger.admission.append_facts(
        batch_id,
        admitted,
        bad,
        now,
        line=records.number,
        position=records.position,
        kept=rules.kept,
    )


def _admit_alone(
    ledger: Ledger,
    batch_id: str,
    archived: Path,
    begins: tuple[int, int],
    rules: Rules,
    now: datetime,
) -> tuple[int, int]:
    """Admit one record by itself, the one behind a place (number, byte); quarantine it where that
    fails. The place behind it."""
    with archived.open("rb") as source:
        records = Records(source, rules.limits, *begins)
        for raw in records.take(1, PIECE_BYTES):
            try:
                _admit(
                    ledger, batch_id, records, [(raw, read_record(records, raw, rules))], rules, now
                )
            except _ELSEWHERE:
                raise
            except Exception as error:
                bad = unexpected(raw.text, raw.number, error)
                place = {"line": records.number, "position": records.position}
                ledger.admission.append_facts(batch_id, [], [bad], now, kept=rules.kept, **place)
        return records.number, records.position


@dataclass(frozen=True, slots=True)
class Counted:
    """How many records a file has, how many of them are bad, and the first bad ones."""

    lines: int
    bad: int
    first: tuple[Quarantined, ...]


def count_bad(path: Path, rules: Rules, shown: int) -> Generator[None, None, Counted]:
    """Count a file's bad records and keep the first `shown` (text left out); pauses in between."""
    lines, bad, first = 0, 0, list[Quarantined]()
    with path.open("rb") as source:
        records = Records(source, rules.limits)
        while taken := records.take(PIECE_LINES, PIECE_BYTES):
            for number, raw in enumerate(taken, start=1):
                parsed = read_record(records, raw, rules)
                lines += parsed is not None
                if isinstance(parsed, Quarantined):
                    bad += 1
                    if len(first) < shown:
                        first.append(parsed.model_copy(update={"text": ""}))
                if number % AT_ONCE == 0:
                    yield None
            yield None
    return Counted(lines, bad, tuple(first))


def retry_quarantined(
    ledger: Ledger, batch_id: str, archived: Path, rules: Rules, line: int | None, now: datetime
) -> Iterator[tuple[int, int]]:
    """Read quarantined lines of a batch again by the rules of now; pauses after each few.

    Gives how many were read since the last pause, and how many of those are bad still. What is left
    out when it is cut off stays in quarantine. Raises `NotFound` where there is no such line.
    """
    last = ledger.quarantine.last(batch_id)
    if not last or (line is not None and ledger.quarantine.kind(batch_id, line) is None):
        which = "line" if line is None else f"line {line}"
        raise NotFound(f"batch {batch_id[:12]} has no {which} in quarantine")
    first, last = (1, last) if line is None else (line, line)
    with archived.open("rb") as source:
        records = Records(source, rules.limits)
        while records.number < last and (taken := records.take(AT_ONCE, PIECE_BYTES)):
            begins, ends = max(first, taken[0].number), min(last, taken[-1].number)
            numbers = ledger.quarantine.line_numbers(batch_id, begins, ends)
            read = [
                (raw, read_record(records, raw, rules)) for raw in taken if raw.number in numbers
            ]
            yield len(read), _readmit(ledger, batch_id, read, rules, now)


def _readmit(
    ledger: Ledger,
    batch_id: str,
    read: list[tuple[Raw, Fact | Quarantined | None]],
    rules: Rules,
    now: datetime,
) -> int:
    """Take these lines out of quarantine if they are good; how many are bad still."""
    if not read:
        return 0
    try:
        admitted, bad = _rule(ledger, read, rules, now)
        numbers = [raw.number for raw, _ in read]
        ledger.quarantine.readmit(batch_id, numbers, admitted, bad, now, kept=rules.kept)
    except _ELSEWHERE:
        raise
    except Exception:
        if len(read) == 1:
            log.exception("intake.line_stays", batch=batch_id, line=read[0][0].number)
            return 1
        return sum(_readmit(ledger, batch_id, [one], rules, now) for one in read)
    return len(bad)


def read_record(records: Records, raw: Raw, rules: Rules) -> Fact | Quarantined | None:
    """What a record says, in the paraphrases to learn, if the model can take it; None for a
    blank."""
    try:
        parsed = records.parse(raw, rules.fmt)
        if not isinstance(parsed, Fact):
            return parsed
        if (why := rules.too_long(parsed)) is not None:
            return quarantined(raw.text, raw.number, "tokens", why)
        return rules.paraphrased(parsed)
    except _ELSEWHERE:
        raise
    except Exception as error:
        log.exception("intake.line", line=raw.number)
        return unexpected(raw.text, raw.number, error)


def _rule(
    ledger: Ledger,
    read: list[tuple[Raw, Fact | Quarantined | None]],
    rules: Rules,
    now: datetime,
) -> tuple[list[tuple[Fact, Ruling]], list[Quarantined]]:
    """What each record means beside what the ledger holds, and those that are not admitted."""
    understood = [(raw, fact) for raw, fact in read if isinstance(fact, Fact)]
    bad = [refused for _, refused in read if isinstance(refused, Quarantined)]
    facts = [fact for _, fact in understood]
    ruled = rule_each(facts, ledger.admission.rivals(facts), rules.conflicts, now)
    admitted = []
    for (raw, _), (fact, ruling) in zip(understood, ruled, strict=True):
        if ruling.relation in (FactRelation.CONFLICT, FactRelation.NO_TARGET):
            asks = (
                ruling.relation is FactRelation.CONFLICT and rules.conflicts is ConflictPolicy.ASK
            )
            kind = "ask" if asks else ruling.relation.value
            bad.append(quarantined(raw.text, raw.number, kind, ruling.reason))
        if ruling.relation is not FactRelation.NO_TARGET:
            admitted.append((fact, ruling))
    return admitted, bad
