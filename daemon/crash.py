"""Named durable steps at which tests end the process, to show that it comes back the same."""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "PALORAD_DIE_AT"
TRACE: Final = "PALORAD_TRACE"

_passed: dict[str, int] = {}


def point(name: str) -> None:
    """A durable step begins or ended here.

    Does nothing unless the environment says `PALORAD_DIE_AT=name` or `name#3` (the third time);
    then the process kills itself as a power cut would. `PALORAD_TRACE=FILE` appends every
    name to a file, so that a test can enumerate the points.
    """
    wanted, trace = os.environ.get(VARIABLE), os.environ.get(TRACE)
    if wanted is None and trace is None:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if trace is not None:
        with open(trace, "a", encoding="utf-8") as file:  # noqa: PTH123 - one call, unbuffered end
            file.write(f"{name}#{_passed[name]}\n")
    if wanted in (name, f"{name}#{_passed[name]}"):
        os.kill(os.getpid(), signal.SIGKILL)
