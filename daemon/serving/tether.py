"""Runs a command that ends with its parent: `python -I tether.py PARENT_PID COMMAND…` (Linux).

It leads a process group of its own: asked to end, or when the parent dies, the command gets
SIGTERM, and after a grace everything left in the group is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1
GRACE_S = 12


def main(arguments: list[str]) -> int:
    """Run the command to its end; its exit status, or 128 + the signal that ended it."""
    parent, *command = arguments
    _when_parent_dies(signal.SIGTERM)
    if os.getppid() != int(parent):
        return 1
    try:
        child = subprocess.Popen(
            command,
            preexec_fn=lambda: _when_parent_dies(signal.SIGKILL),  # noqa: PLW1509  # no threads here
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 127

    def end(*_: object) -> None:
        signal.alarm(GRACE_S)
        child.terminate()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
    code = child.wait()
    return 128 - code if code < 0 else code


def _when_parent_dies(what: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, what)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
