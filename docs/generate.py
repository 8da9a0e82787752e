"""Renew what the documents quote: the configuration's keys, and lines of recorded output."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from daemon.config.reference import reference

DOCS: Final = Path(__file__).resolve().parent
README: Final = DOCS.parent / "README.md"
CONFIGURATION: Final = DOCS / "configuration.md"
DEMO: Final = DOCS / "demo.txt"
PICTURE: Final = "![Accuracy and reasoning over the revisions](docs/img/demo.png)"
OMITTED: Final = "…"

# README's lines of `palorad demo`; each must match something, so that none is lost unnoticed.
SHOWN: Final = (
    r"^ *\d+ s  http\S+ answers as",
    r"^ *\d+ s  revision \d",
    r"^ *\d+ s  false-arithmetic.*: fail$",
    r"^ *\d+ s  (rolled back|forward) to revision",
    r"^┃ question",
    r"^┡━+╇━+╇━+╇━+┩$",
    r"^│ (Tell me the|The) capital of Bhutan",
    r"^All goals reached",
)
_GENERATED: Final = re.compile(r"(<!-- the rest is .*? -->\n).*", re.DOTALL)
_QUOTED: Final = re.compile(r"<!-- demo -->.*?<!-- /demo -->", re.DOTALL)


class NothingMatches(ValueError):
    """A pattern for lines to be shown that fits no line of the recorded output."""


def configuration() -> str:
    """docs/configuration.md with the tables of the settings as they are."""
    return _GENERATED.sub(lambda m: f"{m[1]}\n{reference()}", CONFIGURATION.read_text())


def readme() -> str:
    """README.md with the chosen lines of `docs/demo.txt` and the picture of that run."""
    lines = "\n".join(shortened(DEMO.read_text().splitlines(), SHOWN))
    quoted = f"```console\n$ make demo\n{lines}\n```\n\n{PICTURE}"
    return _QUOTED.sub(lambda _: f"<!-- demo -->\n{quoted}\n<!-- /demo -->", README.read_text())


def shortened(lines: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The lines in which a pattern is found, with "…" for each gap between two of them.

    Raises `NothingMatches` for a pattern that is found nowhere.
    """
    chosen = [n for n, line in enumerate(lines) if any(re.search(p, line) for p in patterns)]
    unused = [p for p in patterns if not any(re.search(p, lines[n]) for n in chosen)]
    if unused:
        raise NothingMatches(f"no line matches {unused}")
    shown: list[str] = []
    for before, number in zip([None, *chosen], chosen, strict=False):
        gap = before is not None and number > before + 1
        shown += [OMITTED, lines[number]] if gap else [lines[number]]
    return shown


if __name__ == "__main__":
    CONFIGURATION.write_text(configuration())
    README.write_text(readme())
