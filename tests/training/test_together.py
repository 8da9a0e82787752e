"""What the leased child makes of how the processes that it started have ended."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from adapters.errors import NoFreeSpace
from daemon.children.endings import EXIT_NO_ROOM
from daemon.children.jobs import JobError
from daemon.children.worker import StepContext, Stopped
from daemon.training import process, together
from policies.errors import TooManyProcesses

Ended = Callable[[Path], dict[int, int]]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[StepContext]:
    with StepContext(tmp_path) as made:
        yield made


def ended(desk: StepContext, how: Ended, monkeypatch: pytest.MonkeyPatch) -> BaseException:
    """What training in three processes raises that end so."""

    def launch(arguments: Sequence[str], count: int) -> dict[int, int]:
        assert count == 3
        assert arguments[:2] == ["-m", "daemon.training.process"]
        return how(desk.workdir)

    monkeypatch.setattr(together, "training_places", lambda: (4, "GPUs"))
    monkeypatch.setattr(together, "launch", launch)
    with pytest.raises(BaseException) as caught:
        together.train(desk, 3, desk.workdir / "out")
    return caught.value


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ({0: 1, 2: -signal.SIGKILL, 1: -signal.SIGTERM}, "process 3 of 3 that train together was"),
        ({0: -signal.SIGTERM, 1: 1}, "process 2 of 3 that train together ended with status 1"),
        ({0: -signal.SIGTERM}, "process 1 of 3 that train together was ended by SIGTERM"),
    ],
)
def test_the_process_that_died_is_named_not_those_that_were_ended_for_it(
    desk: StepContext, codes: dict[int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ended(desk, lambda _: codes, monkeypatch)
    told = JobError.of(error)  # type: ignore[arg-type]
    assert words in told.error
    assert (told.kind, told.final) == ("ProcessDied", False)
    assert "\n" not in told.error


def test_what_a_process_says_is_what_the_child_says(
    desk: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its kind, by which the daemon knows what helps."""

    def gave_up(workdir: Path) -> dict[int, int]:
        said = JobError.of(NoFreeSpace("layer 1 has 3 free directions"))
        (workdir / process.GAVE_UP.format(1)).write_text(said.model_dump_json())
        return {0: -signal.SIGTERM, 1: 1, 2: 1}

    error = ended(desk, gave_up, monkeypatch)
    told = JobError.of(error)  # type: ignore[arg-type]
    assert told == JobError(kind="NoFreeSpace", error="layer 1 has 3 free directions")
    again = ended(desk, lambda _: {0: 1}, monkeypatch)
    assert isinstance(again, together.ProcessDied), "an earlier try's reason counts no more"


def test_a_process_without_room_on_the_disk_is_a_child_without_it(
    desk: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ended(desk, lambda _: {0: EXIT_NO_ROOM, 1: 1}, monkeypatch)
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC


def test_asked_to_stop_the_child_tells_the_processes_and_has_not_failed(
    desk: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(workdir: Path) -> dict[int, int]:
        assert not (workdir / together.STOP).exists()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (workdir / together.STOP).exists()
        return {}

    assert isinstance(ended(desk, stopped, monkeypatch), Stopped)


def test_more_processes_than_gpus_are_no_reason_to_try_again(
    desk: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "training_places", lambda: (2, "GPUs"))
    with pytest.raises(TooManyProcesses, match="3, and this host has 2 GPUs"):
        together.train(desk, 3, desk.workdir / "out")
    assert JobError.of(TooManyProcesses(3, 2, "GPUs")).final
