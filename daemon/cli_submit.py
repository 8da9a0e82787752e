"""`palorad submit`, `validate` and `schema`: files of facts on their way in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from daemon.cli_read import reading
from daemon.cli_session import (
    INCONCLUSIVE,
    PASS,
    REGRESSION,
    console,
    print_json,
    say,
    stderr,
    tell,
)
from policies.admission import Format, is_blank, parse_line
from policies.errors import PaloradError
from policies.records import BatchState, Fact, Quarantined

if TYPE_CHECKING:
    from daemon.settings import Settings

SHOWN = 20


class BadFile(PaloradError):
    """A path that is no readable file of facts."""


def validate_files(paths: Sequence[Path], fmt: str, as_json: bool) -> int:
    """Check each file offline; 1 if any line would be quarantined."""
    try:
        form = Format(fmt)
    except ValueError:
        known = ", ".join(f.value for f in Format)
        raise BadFile(f"--format {fmt} is not known; one of {known}") from None
    reports = [_validated(readable(path), form) for path in paths]
    if as_json:
        print_json(reports)
    else:
        for report in reports:
            _print_validated(report)
    return REGRESSION if any(r["quarantined"] or not r["accepted"] for r in reports) else PASS


def readable(path: Path) -> Path:
    """`path` if it is a file with something in it that we may read; raises `BadFile`."""
    if path.is_dir():
        raise BadFile(f"{path} is a directory; name a JSONL file")
    if not path.exists():
        raise BadFile(f"{path} does not exist")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise BadFile(f"{path} is empty; it needs one JSON object a line")
    except PermissionError:
        raise BadFile(f"{path} may not be read by this user") from None
    return path


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = raw.removesuffix(b"\n")
            if not is_blank(line, number):
                yield number, line


def _validated(path: Path, form: Format) -> dict[str, Any]:
    accepted, bad, seen, twice = 0, [], set(), 0
    for number, raw in _lines(path):
        parsed = parse_line(raw, number, fmt=form)
        if isinstance(parsed, Quarantined):
            bad.append(parsed.model_dump())
        elif isinstance(parsed, Fact):
            accepted += 1
            twice += parsed.id in seen
            seen.add(parsed.id)
    return {
        "file": str(path),
        "accepted": accepted,
        "duplicates": twice,
        "quarantined": len(bad),
        "problems": bad,
    }


def _print_validated(report: dict[str, Any]) -> None:
    line = f"{report['file']}: {report['accepted']} facts"
    if report["duplicates"]:
        line += f" ({report['duplicates']} of them more than once)"
    if not report["accepted"] and not report["quarantined"]:
        line += "; every line is blank"
    if report["quarantined"]:
        line += f", {report['quarantined']} lines would not be admitted"
    say(line)
    for problem in report["problems"][:SHOWN]:
        say(f"  line {problem['line']}: {problem['reason']}")
    if report["quarantined"] > SHOWN:
        say(f"  and {report['quarantined'] - SHOWN} more; --json shows all")


def line_schema() -> dict[str, Any]:
    """The JSON Schema of one native line: what may be left out is not required."""
    schema = Fact.model_json_schema()
    schema["required"] = ["prompt", "answer"]
    schema["title"] = "A line of facts"
    for name in ("prompt", "answer"):
        schema["properties"][name]["minLength"] = 1
    schema["properties"]["answer"]["type"] = ["string", "number"]
    return schema


def submit_files(
    settings: Settings, paths: Sequence[Path], *, again: bool, wait: bool, as_json: bool
) -> int:
    """Hand each file to the daemon; with `wait` the exit code is the worst verdict."""
    for path in paths:
        readable(path)
    receipts = [tell(settings, "submit", path=str(path.resolve()), again=again) for path in paths]
    if not as_json:
        for receipt in receipts:
            say(receipt.get("line", str(receipt)))
    if not wait:
        if as_json:
            print_json(receipts)
        return PASS
    states = {r["batch"]: _settled(settings, r["batch"]) for r in receipts if r.get("batch")}
    if as_json:
        print_json([{**r, "state": states.get(r.get("batch"))} for r in receipts])
    else:
        table = Table("batch", "state")
        for batch, state in states.items():
            table.add_row(batch[:12], state)
        console.print(table)
    return max((_exit_of(state) for state in states.values()), default=PASS)


_UNSETTLED = (BatchState.WAITING, BatchState.LEARNING)


def _settled(settings: Settings, batch: str) -> str:
    with stderr.status(f"waiting for {batch[:12]}"):
        while True:
            with reading(settings) as ledger:
                state = ledger.batch_state(batch)
            if state not in _UNSETTLED:
                return state.value
            tell(settings, "status")  # raises when the daemon is gone
            time.sleep(0.5)


def _exit_of(state: str) -> int:
    if state == BatchState.INCONCLUSIVE:
        return INCONCLUSIVE
    return PASS if state in (BatchState.LIVE, BatchState.EMPTY) else REGRESSION
