"""The leased child's side of training in several processes: it starts them and waits for all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from errno import ENOSPC
from pathlib import Path
from signal import SIGTERM
from typing import Final

from adapters.launch import launch, training_places
from adapters.plans import TrainReport
from daemon.children.endings import EXIT_NO_ROOM, how_it_ended, oom_kills
from daemon.children.jobs import JobError
from daemon.children.worker import StepContext
from daemon.training import process
from policies.errors import PaloradError, TooManyProcesses

STOP: Final = "stop"
"""Where this file is, the processes stop at a checkpoint."""
TRAINED: Final = "trained.json"
"""What the first process has measured."""


class ProcessDied(PaloradError):
    """One of the processes that train together ended without a word."""


class ProcessGaveUp(PaloradError):
    """One of the processes that train together has said why it ended."""

    def __init__(self, told: JobError) -> None:
        self.kind, self.final = told.kind, told.final
        super().__init__(told.error)


def train(desk: StepContext, count: int, out: Path) -> TrainReport:
    """Train in `count` processes what `desk` asks for, and write the adapter to `out`.

    When one of them ends, the others are ended too. They die with this process. Raises `Stopped`
    once the daemon has asked for an end and they have left a checkpoint, `TooManyProcesses`,
    `ProcessGaveUp`, `ProcessDied`, or `OSError` where the disk is full.
    """
    most, places = training_places()
    if count > most:
        raise TooManyProcesses(count, most, places)
    reasons = [desk.workdir / process.GAVE_UP.format(number) for number in range(count)]
    for left in (desk.workdir / STOP, desk.workdir / TRAINED, *reasons):
        left.unlink(missing_ok=True)
    desk.on_stop = (desk.workdir / STOP).touch
    desk.end_if_asked()
    before = oom_kills()
    given = (desk.workdir, out, os.getpid())
    codes = launch(["-m", process.__name__, *map(str, given)], count)
    if not (desk.workdir / TRAINED).exists():
        desk.end_if_asked()
    if not codes:
        return TrainReport.model_validate_json((desk.workdir / TRAINED).read_text())
    if EXIT_NO_ROOM in codes.values():
        raise OSError(ENOSPC, os.strerror(ENOSPC), os.fspath(desk.workdir))
    for reason in reasons:
        if reason.exists():
            raise ProcessGaveUp(JobError.model_validate_json(reason.read_text()))
    raise ProcessDied(_died(codes, count, oom_kills() - before, desk.workdir / "log"))


def _died(codes: Mapping[int, int], count: int, killed: int, log: Path) -> str:
    """How the first to end ended: the others are ended by SIGTERM then, or miss it in a sum."""
    number, code = min(codes.items(), key=lambda one: (one[1] == -SIGTERM, one[1] > 0))
    how = how_it_ended(code, killed)
    return f"process {number + 1} of {count} that train together {how} (see {log})"
