"""`palorad submit`, `validate` and `convert`: files of facts on their way in."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from daemon.cli.exit_codes import INCONCLUSIVE, PASS, REGRESSION
from daemon.cli.session import (
    complain,
    console,
    print_json,
    say,
    stderr,
)
from daemon.client import Client
from daemon.intake.validating import LISTED, convert_file, validate_file
from daemon.views.explain import Explanation
from policies.errors import PaloradError
from policies.facts.admission import Format
from policies.records import BatchState, Quarantined
from policies.text import harmless_json

if TYPE_CHECKING:
    from daemon.config.settings import Settings

SHOWN = 20


class BadFile(PaloradError):
    """A path that is no readable file of facts."""


def validate_files(paths: Sequence[Path], fmt: str, as_json: bool) -> int:
    """Check each file offline; 1 if any line would be quarantined."""
    form = _format(fmt)
    reports = [validate_file(readable(path), form).model_dump() for path in paths]
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
        say(f"  and {report['quarantined'] - SHOWN} more; --json shows the first {LISTED}")


def convert_files(paths: Sequence[Path], fmt: str) -> int:
    """Print each file in the native form; bad lines go to stderr and make the exit code 1."""
    form, code = _format(fmt), PASS
    for path in paths:
        for line in convert_file(readable(path), form):
            if isinstance(line, Quarantined):
                complain(f"{path}: line {line.line}: {line.reason}")
                code = REGRESSION
            else:
                sys.stdout.write(f"{harmless_json(line)}\n")
    return code


def _format(name: str) -> Format:
    try:
        return Format(name)
    except ValueError:
        known = ", ".join(f.value for f in Format)
        raise BadFile(f"--format {name} is not known; one of {known}") from None


def submit_files(
    settings: Settings, paths: Sequence[Path], *, again: bool, wait: bool, as_json: bool
) -> int:
    """Hand each file to the daemon; with `wait` the exit code is the worst verdict."""
    for path in paths:
        readable(path)
    client = Client(settings)
    submitted = client.submit(*paths, again=again)
    if not as_json:
        for one in submitted:
            say(one.line)
    if not wait:
        if as_json:
            print_json([one.model_dump(mode="json", exclude_none=True) for one in submitted])
        return PASS
    states = {}
    for one in submitted:
        with stderr.status(f"waiting for {one.batch[:12]}"):
            states[one.batch] = client.wait(one)
    if as_json:
        print_json(
            [{**one.model_dump(mode="json"), "state": states[one.batch]} for one in submitted]
        )
    else:
        table = Table("batch", "state")
        for batch, state in states.items():
            table.add_row(batch[:12], state.value)
        console.print(table)
        for batch, state in states.items():
            for line in next_steps(client.explain(batch), state):
                say(line)
    return max((_exit_of(state) for state in states.values()), default=PASS)


def next_steps(explained: Explanation, state: BatchState) -> list[str]:
    """What to do about a batch that did not go live; nothing where it did."""
    name, plan = explained.batch[:12], explained.plans[-1].plan if explained.plans else None
    why = f"'palorad explain {name}' says why"
    if state == BatchState.INCONCLUSIVE:
        return [
            f"Too few questions to tell: {why}, and how many more it needs.",
            f"Add them to the suite and 'palorad retry {name}', or decide yourself:",
            f"'palorad promote {plan} --because …' or 'palorad reject {plan} --because …'",
        ]
    if state in (BatchState.REJECTED, BatchState.FAILED):
        return [f"{why}; 'palorad retry {name}' tries once more."]
    return []


def _exit_of(state: BatchState) -> int:
    if state == BatchState.INCONCLUSIVE:
        return INCONCLUSIVE
    return PASS if state in (BatchState.LIVE, BatchState.EMPTY) else REGRESSION
