"""Files of facts checked and converted without a ledger or a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from daemon.intake.reader import Records
from policies.facts.admission import Format, fact_id
from policies.facts.jsonline import DEFAULT_LIMITS, LineLimits
from policies.records import Fact, Quarantined, Record
from policies.text import storable

_PIECE: Final = 1000
_BYTES: Final = 1 << 20
LONGEST_NAME: Final = 4096
LISTED: Final = 1000


class FileReport(Record):
    """What would become of a file: `accepted` facts (some `duplicates` of others in it), and the
    lines that would be quarantined, the first `LISTED` of them with their problems.
    """

    file: str
    accepted: int = 0
    duplicates: int = 0
    quarantined: int = 0
    problems: tuple[Quarantined, ...] = ()


def parsed_lines(
    path: Path, fmt: Format = Format.AUTO, limits: LineLimits = DEFAULT_LIMITS
) -> Iterator[Fact | Quarantined]:
    """Every line (or item of a list) that is not blank; raises `OSError`."""
    with path.open("rb") as source:
        records = Records(source, limits)
        while taken := records.take(_PIECE, _BYTES):
            for raw in taken:
                parsed = records.parse(raw, fmt)
                if parsed is not None:
                    yield parsed


def validate_file(
    path: Path, fmt: Format = Format.AUTO, limits: LineLimits = DEFAULT_LIMITS
) -> FileReport:
    """The report on one file; raises `OSError`."""
    seen: set[str] = set()
    bad: list[Quarantined] = []
    accepted = quarantined = 0
    for parsed in parsed_lines(path, fmt, limits):
        if isinstance(parsed, Quarantined):
            quarantined += 1
            if len(bad) < LISTED:
                bad.append(parsed)
        else:
            accepted += 1
            seen.add(parsed.id)
    return FileReport(
        file=storable(str(path), LONGEST_NAME),
        accepted=accepted,
        duplicates=accepted - len(seen),
        quarantined=quarantined,
        problems=tuple(bad),
    )


def convert_file(
    path: Path, fmt: Format = Format.AUTO, limits: LineLimits = DEFAULT_LIMITS
) -> Iterator[str | Quarantined]:
    """Each line of a file in the native form (without a line end), or why it has none.

    An id that was only derived is left out: it is derived again wherever the line is read.
    """
    for parsed in parsed_lines(path, fmt, limits):
        if isinstance(parsed, Quarantined):
            yield parsed
        else:
            yield native_line(parsed)


def native_line(fact: Fact) -> str:
    """The line that gives this very fact when it is read."""
    derived = fact_id(
        op=fact.op,
        prompt=fact.prompt,
        answer=fact.answer,
        subject=fact.subject,
        relation=fact.relation,
        since=fact.valid_from,
    )
    left_out = {name for name in ("prompt", "answer") if not getattr(fact, name)}
    left_out |= {"id"} if fact.id == derived else set()
    return fact.model_dump_json(exclude_defaults=True, exclude=left_out)
