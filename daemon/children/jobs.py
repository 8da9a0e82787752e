"""Leased children: whatever takes longer than a second runs in a process of its own.

A child works in one directory: it reads its request, appends to `progress.jsonl`, and ends by
writing `report.json` or `error.json` atomically. It holds `flock` on `lock`, so that no two ever
work in one directory, and dies with the daemon.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError

from adapters import files
from daemon.base import faults
from daemon.children import request
from daemon.children.endings import EXIT_NO_ROOM, how_it_ended, oom_kills
from daemon.children.request import Rows
from daemon.children.threads import threads
from policies.errors import PaloradError
from policies.records import Record

TERMINATE_S: Final = 10.0
LOG_TAIL_BYTES: Final = 4096
NO_ROOM: Final = "DiskFull"
NO_ROWS: Final[Rows] = {}
LAUNCHER: Final = "launcher.json"


class Progress(Record):
    """The newest line of `progress.jsonl`: how far a child is."""

    stage: str = ""
    done: int = 0
    total: int = 0
    loss: float | None = None
    seconds_left: float | None = None


class JobError(Record):
    """Why a child gave up; `final` where trying again cannot help."""

    kind: str
    error: str
    final: bool = False

    @staticmethod
    def of(error: PaloradError) -> JobError:
        """What an exception says; its class is its `kind`, unless it has one of its own."""
        kind = getattr(error, "kind", type(error).__name__)
        return JobError(kind=kind, error=str(error), final=getattr(error, "final", False))


@dataclass(frozen=True, slots=True)
class Launcher:
    """How a child has its step done elsewhere: the module with a function of the step's name, and
    what that needs to know, which it finds as `launcher.json` in its directory."""

    module: str
    settings: BaseModel


@dataclass(frozen=True, slots=True)
class JobState:
    """What is known of one step: it runs, has a report, has failed, or is gone without a word
    (stopped with the daemon, or never started)."""

    outcome: Literal["running", "finished", "failed", "absent"]
    progress: Progress | None = None
    report: Mapping[str, Any] | None = None
    error: JobError | None = None


LOCAL: Final[Mapping[str, Launcher]] = {}


class Jobs:
    """Starts, watches and ends the children of one daemon."""

    def __init__(self, launchers: Mapping[str, Launcher] = LOCAL) -> None:
        """Each step is done by the child itself, unless `launchers` has something for it."""
        self._launchers = launchers
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._oom_kills: dict[Path, int] = {}

    def prepare(self, workdir: Path, record: BaseModel, rows: Rows = NO_ROWS) -> None:
        """Write what the next child of `workdir` is asked for: seconds, where it is a rebuild."""
        files.make_folder(workdir)
        (workdir / "error.json").unlink(missing_ok=True)
        request.write(workdir, record, rows)

    def start(self, step: str, workdir: Path) -> int:
        """Start the child of `step` in `workdir`, which is prepared; returns its pid.

        Where the child before it left a checkpoint, it goes on from there.
        """
        faults.point(f"{step}:requested")
        module, launcher = [], self._launchers.get(step)
        if launcher is not None:
            (workdir / LAUNCHER).write_text(launcher.settings.model_dump_json(indent=1))
            module = [launcher.module]
        with (workdir / "log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "daemon.children.worker", step, os.fspath(workdir), *module],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **threads(), "PALORAD_PARENT": str(os.getpid())},
            )
        self._began(workdir, child)
        faults.point(f"{step}:started")
        return child.pid

    def _began(self, workdir: Path, child: subprocess.Popen[bytes]) -> None:
        self._children[workdir] = child
        self._oom_kills[workdir] = oom_kills()

    def poll(self, workdir: Path) -> JobState:
        """Where the child of `workdir` stands; never waits."""
        child = self._children.get(workdir)
        if child is not None and child.poll() is None:
            return JobState("running", progress=last_progress(workdir))
        if child is None and held(workdir):
            return JobState("running", progress=last_progress(workdir))
        self._children.pop(workdir, None)
        before = self._oom_kills.pop(workdir, None)
        try:
            ended = last_word(workdir)
        except ValueError as error:
            return JobState("failed", error=_unreadable(workdir, error))
        if ended is not None:
            return ended
        if child is None or child.returncode == 0:
            return JobState("absent")
        killed = 0 if before is None else oom_kills() - before
        return JobState("failed", error=died(child.returncode, workdir, killed))

    def cancel(self, workdir: Path) -> None:
        """Ask the child to stop at its next checkpoint; `kill` does not ask."""
        child = self._children.get(workdir)
        if child is not None and child.poll() is None:
            child.terminate()

    def kill(self, workdir: Path) -> None:
        """End the child at once."""
        child = self._children.pop(workdir, None)
        self._oom_kills.pop(workdir, None)
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()

    def running(self) -> tuple[Path, ...]:
        """The working directories of children that still run."""
        return tuple(w for w, child in self._children.items() if child.poll() is None)


def held(workdir: Path) -> bool:
    """Whether some process works in `workdir`."""
    try:
        descriptor = os.open(workdir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def last_progress(workdir: Path) -> Progress | None:
    """The newest whole line of `progress.jsonl`; one that a power cut has torn is passed over."""
    try:
        with (workdir / "progress.jsonl").open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - LOG_TAIL_BYTES))
            tail = stream.read()
    except FileNotFoundError:
        return None
    for line in reversed(tail[: tail.rfind(b"\n") + 1].splitlines()):
        try:
            return Progress.model_validate_json(line)
        except ValidationError:
            continue
    return None


def started_at(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot: with the pid it names a process
    for good. None where there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])


def last_word(workdir: Path) -> JobState | None:
    """The report or the error that a child has left; raises `ValueError` for a damaged one."""
    if (workdir / "report.json").exists():
        report = json.loads((workdir / "report.json").read_text())
        return JobState("finished", report=report, progress=last_progress(workdir))
    if (workdir / "error.json").exists():
        error = JobError.model_validate_json((workdir / "error.json").read_text())
        return JobState("failed", error=error)
    return None


def _unreadable(workdir: Path, error: ValueError) -> JobError:
    """What a child has left is damaged: it goes, so that the step can be done again."""
    for name in ("report.json", "error.json"):
        (workdir / name).unlink(missing_ok=True)
    first_line = str(error).splitlines()[0]
    return JobError(kind="Unreadable", error=f"{workdir}: what the child left: {first_line}")


def died(code: int, workdir: Path, oom_kills_meanwhile: int) -> JobError:
    """What to say of a child that has ended with this status and has left nothing."""
    lines = _tail(workdir / "log").strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    if code == EXIT_NO_ROOM:
        return JobError(kind=NO_ROOM, error=f"{workdir}: the disk is full{last}")
    how = how_it_ended(code, oom_kills_meanwhile)
    return JobError(kind="ChildDied", error=f"the child {how}{last} (see {workdir / 'log'})")


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - LOG_TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
