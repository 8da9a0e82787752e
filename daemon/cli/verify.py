"""`palorad verify`: what is wrong, where, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from daemon.cli.session import print_json, say, tell
from daemon.loop.instance import holder
from daemon.verification.findings import Report
from daemon.verification.verify import verify

if TYPE_CHECKING:
    from daemon.config.settings import Settings


def show_verification(settings: Settings, *, quick: bool, kept: Path | None, as_json: bool) -> int:
    """Verify, beside the daemon if one runs; the exit code."""
    running = holder(settings.layout.lock) is not None
    report = verify(settings, quick=quick, running=running, kept=kept)
    if as_json:
        print_json({"code": report.code, **report.model_dump()})
    else:
        _show(report)
    return report.code


def _show(report: Report) -> None:
    for finding in report.findings:
        say(f"{finding.check.upper()} {finding.line}")
    for check, count in report.more.items():
        say(f"{check.upper()} and {count} more of these")
    for line in report.unchecked:
        say(f"NOT VERIFIED {line}")
    for line in report.skipped:
        say(f"left out: {line}")
    counted = ", ".join(f"{number} {what}" for what, number in report.counted.items())
    ends = {0: "everything is what was written", 1: "not everything is what was written"}
    say(f"{ends.get(report.code, 'not everything could be verified')}: {counted or 'nothing seen'}")


def accept_history(settings: Settings, because: str) -> None:
    """Have the daemon sign the history as it is."""
    say(tell(settings, "accept", because=because)["line"])
