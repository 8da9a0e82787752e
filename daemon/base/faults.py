"""Named durable steps at which tests end the process, to show that it comes back the same."""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "PALORAD_DIE_AT"
ONCE: Final = "PALORAD_DIE_ONCE"
TRACE: Final = "PALORAD_TRACE"
# A transaction that names itself passes a point before it, before its commit, and after.
PHASES: Final = ("before", "within", "after")

_passed: dict[str, int] = {}


def point(name: str) -> None:
    """A durable step begins or ended here: tests may end the process at it.

    Does nothing unless the environment says `PALORAD_DIE_AT=name`, or `name#3` (the third time in
    this process), or several of them with commas; then the process kills itself as a power cut
    would. With `PALORAD_DIE_ONCE=PATH` it does so only if PATH.name is not there, and makes it,
    so that the next process lives. `PALORAD_TRACE=FILE` appends every name to a file.
    """
    wanted, trace = os.environ.get(VARIABLE), os.environ.get(TRACE)
    if wanted is None and trace is None:
        return
    _passed[name] = _passed.get(name, 0) + 1
    numbered = f"{name}#{_passed[name]}"
    if trace is not None:
        with open(trace, "a", encoding="utf-8") as file:  # noqa: PTH123 - shared by processes
            file.write(f"{numbered}\n")
    if {name, numbered} & set((wanted or "").split(",")) and _first(name):
        os.kill(os.getpid(), signal.SIGKILL)


def _first(name: str) -> bool:
    once = os.environ.get(ONCE)
    if once is None:
        return True
    try:
        os.close(os.open(f"{once}.{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True
