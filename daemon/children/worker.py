"""A leased child: one step in one directory.

`python -m daemon.children.worker STEP WORKDIR`, and a module that has the step done elsewhere.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, Self

from pydantic import BaseModel

from adapters import files
from daemon.base import faults
from daemon.children import request
from daemon.children.endings import EXIT_NO_ROOM, no_room
from daemon.children.jobs import JobError, Progress
from policies.errors import PaloradError

# Where each step is done, imported only in the child that does it; PALORAD_STEPS names another
# module with functions of the same names, which is how tests put faults in.
STEPS: Final = {
    "probe": "daemon.training.child",
    "train": "daemon.training.child",
    "evaluate": "daemon.gate.child",
}
PR_SET_PDEATHSIG: Final = 1
EXIT_BUSY: Final = 75


class Stopped(BaseException):
    """The daemon asked this child to stop; raised out of the next progress report."""


class StepContext:
    """What a step works at: its directory, its request and its progress reports.

    As a context manager it holds `progress.jsonl` open and takes SIGTERM; it gives both back.
    """

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.on_stop: Callable[[], None] = lambda: None
        """Called when the daemon asks for an end."""
        self._stopping = False
        path = workdir / "progress.jsonl"
        before = path.read_bytes() if path.exists() else b""
        self._progress = path.open("a", encoding="utf-8", buffering=1)
        if before and not before.endswith(b"\n"):
            self._progress.write("\n")
        self._former = signal.signal(signal.SIGTERM, self._stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.close()
        signal.signal(signal.SIGTERM, self._former)

    @property
    def request(self) -> str:
        """The request as JSON text."""
        return request.read(self.workdir)

    @property
    def stopping(self) -> bool:
        """Whether the daemon asked this child to stop: checkpoint and call `progress` again."""
        return self._stopping

    def progress(self, progress: Progress) -> None:
        """Append a progress line; raises `Stopped` once the daemon has asked for an end."""
        self._progress.write(progress.model_dump_json() + "\n")
        self.end_if_asked()

    def end_if_asked(self) -> None:
        """Raises `Stopped` once the daemon has asked for an end."""
        if self._stopping:
            raise Stopped

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self.on_stop()


StepFunction = Callable[[StepContext], BaseModel]


def main(step: str, workdir: Path, module: str | None = None) -> int:
    """Do one step, by the function of its name in `module` where one is given.

    Its exit status is 0 when a report or an error has been written, and `EXIT_NO_ROOM` when there
    was no room on the disk.
    """
    die_with_parent()
    lock = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return EXIT_BUSY
    if (workdir / "report.json").exists():
        return 0
    try:
        with StepContext(workdir) as desk:
            _do(step, desk, module)
    except Exception as error:
        if not no_room(error):
            raise
        # An error.json might find no room either.
        with suppress(OSError):
            print(error, file=sys.stderr)
        return EXIT_NO_ROOM
    return 0


def _do(step: str, desk: StepContext, module: str | None) -> None:
    try:
        report = _find(step, module)(desk)
    except Stopped:
        return
    except PaloradError as error:
        if no_room(error):
            raise
        files.write_text(desk.workdir / "error.json", JobError.of(error).model_dump_json())
        return
    faults.point(f"{step}:done")
    files.write_text(desk.workdir / "report.json", report.model_dump_json(indent=1))
    faults.point(f"{step}:reported")


def die_with_parent(parent: str | None = None) -> None:
    """Have the kernel kill this process when its parent dies; at once if that has happened.

    Without the `parent`'s number that of the environment is taken.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    parent = parent or os.environ.get("PALORAD_PARENT")
    if parent and int(parent) != os.getppid():
        os.kill(os.getpid(), signal.SIGKILL)


def _find(step: str, module: str | None) -> StepFunction:
    named = module or os.environ.get("PALORAD_STEPS") or STEPS[step]
    found: StepFunction = getattr(importlib.import_module(named), step)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
