"""What each command's exit code means; `docs/commands.md` shows these tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PASS, REGRESSION, USAGE, INCONCLUSIVE, NO_DAEMON = 0, 1, 2, 3, 4
FOR_NOW: Final = 75
"""The disk is full or the ledger locked: trying again later helps (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED: Final = 130
"""Ctrl-C: 128 and the number of SIGINT, as shells have it."""

EVERY_COMMAND: Final[Mapping[int, str]] = {
    PASS: "done",
    USAGE: "a wrong option, setting, name or file, or what was asked may not be done; one line "
    "says what to do",
    NO_DAEMON: "the command needs the daemon, and none answers",
    FOR_NOW: "the disk is full, or another process holds the ledger: the same again later",
    INTERRUPTED: "interrupted by Ctrl-C",
}
"""What any command may end with."""

COMMANDS: Final[Mapping[str, Mapping[int, str]]] = {
    "run": {
        PASS: "it was told to stop",
        USAGE: "also: another daemon runs on this state directory",
    },
    "status": {
        PASS: "all is well",
        REGRESSION: "trouble: something needs a person, or a replica that should serve does not",
        NO_DAEMON: "no daemon runs; what the ledger knows is shown",
    },
    "verify": {
        PASS: "everything is as it was written",
        REGRESSION: "findings",
        USAGE: "also: something could not be looked at",
    },
    "submit": {
        PASS: "taken; with `--wait`: every batch is live, or had nothing new",
        REGRESSION: "with `--wait`: a batch was rejected, has failed or was rolled back",
        INCONCLUSIVE: "with `--wait`: a verdict is inconclusive, and a person decides",
    },
    "validate": {REGRESSION: "lines that would not be admitted"},
    "convert": {REGRESSION: "lines that are no facts; the others are printed"},
    "backup": {REGRESSION: "a published directory was damaged and left out"},
    "config check": {USAGE: "also: something that a setting names is not there"},
    "init": {REGRESSION: "the files are made, but no candidate could pass the gate with them"},
    "doctor": {USAGE: "also: something is missing or wrong"},
    "demo": {REGRESSION: "a goal was missed"},
}
"""What further codes of a command mean, or what one means for it."""


def tables() -> str:
    """Both tables as Markdown."""
    lines = ["| every command | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EVERY_COMMAND.items()]
    lines += ["", "| command | code | meaning |", "|---|---|---|"]
    for command, codes in COMMANDS.items():
        lines += [f"| `palorad {command}` | {code} | {codes[code]} |" for code in sorted(codes)]
    return "\n".join(lines)
