"""Renew what the documents quote: the configuration's keys, and recorded output.

`demo.txt` and `transcripts/*.txt` hold whole outputs; pages show chosen lines of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from daemon.cli import exit_codes
from daemon.config.reference import reference

DOCS: Final = Path(__file__).resolve().parent
README: Final = DOCS.parent / "README.md"
CONFIGURATION: Final = DOCS / "configuration.md"
COMMANDS: Final = DOCS / "commands.md"
DEMO: Final = DOCS / "demo.txt"
PICTURE: Final = "![Accuracy and reasoning over the revisions](docs/img/demo.png)"
QUOTING: Final = ("facts", "serving", "first-day")
OMITTED: Final = "…"

# README's lines of `palorad demo`; each must match something, so that none is lost unnoticed.
SHOWN: Final = (
    r"^ *\d+ s  http\S+ answers as",
    r"^ *\d+ s  revision \d",
    r"^ *\d+ s  false-arithmetic.*: fail$",
    r"^ *\d+ s  (rolled back|forward) to revision",
    r"^┃ question",
    r"^│ Tell me the capital of Bhutan",
    r"^All goals reached",
)
# The lines of a longer piece that its page shows; other pieces are shown whole.
EXCERPTS: Final = {
    "supersede": (r"^\$", r"^{", r"^Asked now", r"^The (revision before|base) "),
    "quarantine": (r"^\$", r"^asia\.jsonl, line 4", r"^{"),
    "retract": (r"^\$ palorad", r"^fact bt-1 is retracted", r"STILL SERVED", r"^r-\w+\)$"),
    "certificate": (r"^\$", r"^r-", r'"(because|no_longer_served_since|erased_at|holds)"'),
    "replicas": (r"^\$", r"replica +┃ ready", r"^│ http"),
    "replica-lost": (r"^\$", r"replica +┃ ready", r"^│ http", r"^http\S+ does not"),
    "init": (r"^(?!(known facts.*|problems): \d+ of )",),
    "init-doctor": (r"^\$", r"gate suite", r"port of"),
    "first-why": (r"^\$", r"^Asked now", r"fact .*says", r"^The base"),
    "rollback-serving": (r"^\$ (palorad|curl)", r"^HTTP", r"^x-palorad"),
}
_RULE: Final = re.compile(r"^[━─┏┳┓┡╇┩├┼┤└┴┘]*$")
_GENERATED: Final = re.compile(r"(<!-- the rest is .*? -->\n).*", re.DOTALL)
_DEMO: Final = re.compile(r"<!-- demo -->.*?<!-- /demo -->", re.DOTALL)
_EXIT_CODES: Final = re.compile(r"(<!-- exit codes -->\n).*?(<!-- /exit codes -->)", re.DOTALL)
_QUOTED: Final = re.compile(r"<!-- said: ([\w-]+) -->.*?<!-- /said -->", re.DOTALL)
_PIECE: Final = re.compile(r"^### ([\w-]+)\n(.*?)(?=^### |\Z)", re.DOTALL | re.MULTILINE)


class NothingMatches(ValueError):
    """A pattern for lines to be shown that fits no line of the recorded output."""


def configuration() -> str:
    """docs/configuration.md with the tables of the settings as they are."""
    return _GENERATED.sub(lambda m: f"{m[1]}\n{reference()}", CONFIGURATION.read_text())


def commands() -> str:
    """docs/commands.md with the exit codes as they are."""
    text = COMMANDS.read_text()
    return _EXIT_CODES.sub(lambda m: f"{m[1]}{exit_codes.tables()}\n{m[2]}", text)


def readme() -> str:
    """README.md with the chosen lines of `docs/demo.txt` and the picture of that run."""
    lines = "\n".join(shortened(DEMO.read_text().splitlines(), SHOWN))
    quoted = f"```console\n$ make demo\n{lines}\n```\n\n{PICTURE}"
    return _DEMO.sub(lambda _: f"<!-- demo -->\n{quoted}\n<!-- /demo -->", README.read_text())


def quoting(name: str) -> str:
    """docs/NAME.md with what it quotes of docs/transcripts/NAME.txt."""
    recorded = (DOCS / "transcripts" / f"{name}.txt").read_text()
    pieces = {found[1]: found[2].rstrip() for found in _PIECE.finditer(recorded)}

    def block(found: re.Match[str]) -> str:
        piece, patterns = found[1], EXCERPTS.get(found[1])
        lines = pieces[piece].splitlines()
        shown = "\n".join(shortened(lines, patterns) if patterns else lines)
        return f"<!-- said: {piece} -->\n```console\n{shown}\n```\n<!-- /said -->"

    return _QUOTED.sub(block, (DOCS / f"{name}.md").read_text())


def shortened(lines: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The lines in which a pattern is found, with "…" where lines between two of them are missing.

    A table's rules are left out without a mark. Raises `NothingMatches` for a pattern that is found
    nowhere.
    """
    if unused := [p for p in patterns if not any(re.search(p, line) for line in lines)]:
        raise NothingMatches(f"no line matches {unused}")
    shown: list[str] = []
    gap = False
    for line in lines:
        if any(re.search(pattern, line) for pattern in patterns):
            shown += [OMITTED, line] if gap and shown else [line]
            gap = False
        elif not _RULE.match(line):
            gap = True
    return shown


def main() -> None:
    """Rewrite every page of which a part is generated."""
    CONFIGURATION.write_text(configuration())
    COMMANDS.write_text(commands())
    README.write_text(readme())
    for page in QUOTING:
        (DOCS / f"{page}.md").write_text(quoting(page))


if __name__ == "__main__":
    main()
