"""What `palorad doctor` says of files of known facts: does the model give their answers?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from daemon.cli.suite_check import CheckResult
from daemon.client import Client
from policies.errors import PaloradError, ServerUnreachable
from policies.gate.mentions import contains
from policies.gate.records import Role

if TYPE_CHECKING:
    from daemon.config.settings import Settings

ASKED: Final = 12
FEW, MANY = 0.5, 0.9


def known_findings(settings: Settings) -> Iterator[CheckResult]:
    """A sample of every file of known facts, asked of the base; one line if no server answers."""
    client = Client(settings)
    files = {"train.replay.known": settings.train.replay.known}
    files |= {
        f"gate suite {suite.name!r}": suite.path
        for suite in settings.gate.suites
        if suite.role is Role.LOCALITY and suite.task is None
    }
    for what, path in files.items():
        rows = _sample(path)
        if not rows:
            continue
        try:
            right = sum(_gives(client, prompt, answers) for prompt, answers in rows)
        except ServerUnreachable:
            yield CheckResult(
                "known facts", True, "not asked: no server answers; start it, and again"
            )
            return
        except PaloradError as error:
            yield CheckResult("known facts", True, f"not asked: {error}")
            return
        yield _judged(f"{what} {path}", right, len(rows))


def _judged(what: str, right: int, asked: int) -> CheckResult:
    told = f"{what}: the base gives {right} of {asked} answers that were tried"
    if right >= MANY * asked:
        return CheckResult(told, True)
    advice = "what it does not know is no known fact: replace those lines by its own answers"
    return CheckResult(told, right >= FEW * asked, advice)


def _gives(client: Client, prompt: str, answers: tuple[str, ...]) -> bool:
    said = client.ask(prompt, model=client.settings.model.name).text
    return any(contains(said, answer) for answer in answers)


def _sample(path: Path | None) -> list[tuple[str, tuple[str, ...]]]:
    """At most `ASKED` questions with their answers, spread evenly over the file; nothing where it
    cannot be read, which is said elsewhere."""
    if path is None:
        return []
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows = [json.loads(line) for line in lines[:: max(1, len(lines) // ASKED)][:ASKED]]
        return [(row["prompt"], tuple(row.get("answers") or (row["answer"],))) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []
