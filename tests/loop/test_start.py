"""What passes by itself does not end a start in the exit code that systemd never restarts."""

from __future__ import annotations

import errno
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.cli import main
from daemon.cli.exit_codes import FOR_NOW, USAGE
from daemon.config.layout import Layout
from daemon.ledger.ledger import Ledger
from daemon.loop import start
from policies.errors import ConfigError, DiskFull, LedgerBusy

UNIT = Path(__file__).parents[2] / "deploy" / "palorad.service"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "skill.jsonl").write_text("")
    (tmp_path / "config.toml").write_text(
        f"""state_dir = "{tmp_path}/s"
        model.path = "{model}"
        probe.skill = "{tmp_path}/skill.jsonl"
        train.replay.known = ""
        train.replay.reasoning = ""
        gate.suites = []
        """
    )
    return Layout(tmp_path / "s")


@pytest.fixture
def palorad_run(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[], int]]:
    """`palorad run`, whose service ends at once where it is reached; the exit code."""
    import structlog

    async def served(*_: object) -> None: ...

    monkeypatch.setattr(start, "_run", served)
    monkeypatch.setattr(start, "PATIENCE_S", 2.0)
    monkeypatch.setattr(sys, "argv", ["palorad", "run", "--config", str(tmp_path / "config.toml")])
    before = structlog.get_config()

    def run() -> int:
        with pytest.raises(SystemExit) as ended:
            main.main()
        return int(ended.value.code or 0)

    yield run
    structlog.configure(**before)


def holding(path: Path, seconds: float) -> threading.Thread:
    """Another process's work on the ledger: locked whole, for so long."""
    locked = threading.Event()

    def hold() -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        locked.set()
        time.sleep(seconds)
        other.execute("ROLLBACK")
        other.close()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait(5)
    return thread


def test_a_ledger_that_is_locked_for_a_moment_is_waited_for(
    layout: Layout, palorad_run: Callable[[], int]
) -> None:
    assert palorad_run() == 0
    other = holding(layout.ledger, 1.3)
    assert palorad_run() == 0
    other.join()


def test_a_ledger_that_stays_locked_ends_in_a_code_that_systemd_restarts(
    layout: Layout, palorad_run: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert palorad_run() == 0
    other = holding(layout.ledger, 6)
    code = palorad_run()
    other.join()
    assert code == FOR_NOW
    assert not prevented(code)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("palorad: ")
    assert "in use by another process" in last


def prevented(code: int) -> bool:
    """Whether the shipped unit says that systemd must not start it again."""
    said = re.search(r"^RestartPreventExitStatus=(.*)$", UNIT.read_text(), re.MULTILINE)
    return said is not None and str(code) in said[1].split()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["prepare_state", "alone", "_opened", "_run"])
def test_a_full_disk_at_the_start_ends_in_a_code_that_systemd_restarts(
    palorad_run: Callable[[], int], monkeypatch: pytest.MonkeyPatch, number: int, step: str
) -> None:
    def full(*_: object, **__: object) -> object:
        raise OSError(number, "no room")

    monkeypatch.setattr(start, step, full)
    code = palorad_run()
    assert code == FOR_NOW
    assert not prevented(code)


def test_a_full_disk_while_folders_are_made_is_no_wrong_setting(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, palorad_run: Callable[[], int]
) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "mkdir", full)
    assert palorad_run() == FOR_NOW


def test_a_wrong_setting_still_is_not_tried_again(
    layout: Layout, palorad_run: Callable[[], int], tmp_path: Path
) -> None:
    (tmp_path / "model" / "config.json").unlink()
    code = palorad_run()
    assert code == USAGE
    assert prevented(code)


def test_a_newer_ledger_is_refused_in_one_line(
    layout: Layout, palorad_run: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A downgrade must not write into what it does not understand."""
    assert palorad_run() == 0
    raw = sqlite3.connect(layout.ledger)
    raw.execute("UPDATE _sqlite_migrations SET name = 'schema_7'")
    raw.commit()
    raw.close()
    before = layout.ledger.read_bytes()
    assert palorad_run() == USAGE
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "a newer schema (schema_7)" in lines[0]
    assert "use the palorad that wrote it" in lines[0]
    assert layout.ledger.read_bytes() == before


# --- the waiting itself ----------------------------------------------------------------------


class Time:
    def __init__(self) -> None:
        self.now, self.slept = 0.0, [0.0]

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


def test_pauses_grow_and_end(layout: Layout) -> None:
    time_ = Time()

    def busy() -> None:
        raise LedgerBusy("locked")

    with pytest.raises(LedgerBusy):
        start.patiently(busy, 30, sleep=time_.sleep, clock=lambda: time_.now)
    assert time_.slept == sorted(time_.slept)
    assert 20 < time_.now <= 30


@pytest.mark.parametrize("error", [ConfigError("wrong"), PermissionError(errno.EACCES, "no")])
def test_what_does_not_pass_is_raised_at_once(error: Exception) -> None:
    time_ = Time()

    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        start.patiently(fails, 30, sleep=time_.sleep, clock=lambda: time_.now)
    assert time_.now == 0


def test_what_comes_back_is_gone_on_with(layout: Layout) -> None:
    time_, left = Time(), [DiskFull("full"), LedgerBusy("locked")]

    def step() -> str:
        if left:
            raise left.pop()
        return "made"

    assert start.patiently(step, 30, sleep=time_.sleep, clock=lambda: time_.now) == "made"


def test_the_whole_patience_is_shorter_than_the_unit_allows() -> None:
    said = re.search(r"^TimeoutStartSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert said is not None
    assert int(said[1]) >= start.PATIENCE_S + 10


def test_a_ledger_is_not_left_open_by_a_start_that_waits(
    layout: Layout, palorad_run: Callable[[], int]
) -> None:
    assert palorad_run() == 0
    with Ledger.open(layout.ledger) as ledger:
        assert ledger.revisions.target().number == 0
