"""Runs a command that ends with its parent: `tether.py PARENT_PID [--log FILE] COMMAND…` (Linux).

With `--log` what it says goes to FILE, which is set aside and begun anew when it is large.
It leads a process group of its own: asked to end, or when the parent dies, the command gets
SIGTERM, and after a grace everything left in the group is killed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
from logging.handlers import RotatingFileHandler
from typing import IO

PR_SET_PDEATHSIG = 1
GRACE_S = 12
LOG_BYTES = 10_000_000
LOGS_KEPT = 2
LONGEST_LINE = 16_384
LAST_WORDS_S = 2


def main(arguments: list[str]) -> int:
    """Run the command to its end; its exit status, or 128 + the signal that ended it."""
    parent, *command = arguments
    log: RotatingFileHandler | None = None
    if command[0] == "--log":
        _, file, *command = command
        log = RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT, encoding="utf-8")
    _when_parent_dies(signal.SIGTERM)
    if os.getppid() != int(parent):
        return 1
    try:
        child = subprocess.Popen(
            command,
            preexec_fn=lambda: _when_parent_dies(signal.SIGKILL),  # noqa: PLW1509  # no threads yet
            stdout=None if log is None else subprocess.PIPE,
            stderr=None if log is None else subprocess.STDOUT,
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
    writer = threading.Thread(target=_keep, args=(child.stdout, log), daemon=True)
    if log is not None:
        writer.start()
    code = child.wait()
    if log is not None:
        # What the child has started may hold the pipe still.
        writer.join(LAST_WORDS_S)
    return 128 - code if code < 0 else code


def _keep(said: IO[bytes], log: RotatingFileHandler) -> None:
    """Read on, whatever becomes of the log: nobody may have to wait for it."""
    logging.raiseExceptions = False
    while line := said.readline(LONGEST_LINE):
        text = line.rstrip(b"\n").decode(errors="backslashreplace")
        log.emit(logging.makeLogRecord({"msg": text}))


def _when_parent_dies(what: signal.Signals) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, what)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
