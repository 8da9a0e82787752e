"""`palorad watch`: what a person sees while something is under way."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.base.display import HarmlessConsole
from daemon.children.jobs import Progress
from daemon.cli.tables import time_left
from daemon.cli.watch import watch
from daemon.client import Client
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.views.status import DaemonView
from policies.planning import Step
from tests.support.world import World

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A ledger on disk in which a plan is trained."""
    world = World(tmp_path / "world")
    state = tmp_path / "state"
    state.mkdir()
    with Ledger.open(state / "ledger.db") as ledger:
        ledger.revisions.ensure_base("base", NOW)
        world.ledger, world.drops = ledger, 0
        world.drop(2)
        world.crash()
        for _ in range(3):
            world.tick()
            if world.running is not None and world.jobs.started[-1][0] == Step.PROBE.value:
                world.finish()
        assert ledger.steps.leases()
    return world.settings.model_copy(update={"state_dir": state})


def told(settings: Settings, terminal: bool, rounds: int) -> str:
    out = io.StringIO()
    console = HarmlessConsole(file=out, force_terminal=terminal, width=100, color_system=None)
    watch(settings, 1.0, console, sleep=lambda _: None, now=lambda: NOW, rounds=rounds)
    return out.getvalue()


def working(seconds: float | None, trouble: str = "") -> Callable[[object], DaemonView]:
    progress = Progress(stage="train", done=3, total=9, seconds_left=seconds)
    lines = (trouble,) if trouble else ()
    return lambda _: DaemonView(pid=7, server="vllm", progress=progress, trouble=lines)


def test_it_shows_the_stage_with_a_bar_and_the_time_left(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "daemon", working(400.0))
    shown = told(settings, terminal=True, rounds=2)
    assert "train 3 of 9, about 7 min left" in shown
    assert "━" * 10 in shown


def test_it_goes_on_when_the_daemon_goes_and_comes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([working(None)(0), None, working(None, "the disk is full")(0)])
    monkeypatch.setattr(Client, "daemon", lambda _: next(seen))
    shown = told(settings, terminal=False, rounds=3)
    there = [shown.index(part) for part in ("running (pid 7)", "does not run", "the disk is full")]
    assert there == sorted(there)


def test_a_pipe_gets_only_what_is_new(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "daemon", working(None))
    assert told(settings, terminal=False, rounds=5).count("running (pid 7)") == 1


def test_before_the_first_run_it_waits_for_it(tmp_path: Path) -> None:
    shown = told(Settings(state_dir=tmp_path / "none"), terminal=False, rounds=2)
    assert "palorad run" in shown


def test_ctrl_c_is_its_end_and_no_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "daemon", pressed)
    assert told(settings, terminal=True, rounds=1).strip("\x1b[?25lh \n") == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.4, "about 12 s left"), (400, "about 7 min left"), (10800, "about 3.0 h left")],
)
def test_an_estimate_is_told_no_finer_than_it_is_good(seconds: float, words: str) -> None:
    assert time_left(seconds) == words
