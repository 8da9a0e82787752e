"""What programs rely on: the exit code of every command, and the table that tells it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.cli import main
from daemon.cli.exit_codes import COMMANDS, EVERY_COMMAND
from daemon.client import Client
from daemon.ledger.ledger import Ledger
from daemon.views.status import DaemonView, ReplicaView
from tests.test_docs import COMMANDS as KNOWN

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
READY = ReplicaView(url="http://a", ready=True, target="r")
LOADING = ReplicaView(url="http://a", ready=False, target="r", reason="loading r", passing=True)
AWAY = ReplicaView(url="http://a", ready=False, target="r", reason="http://a does not answer")

Palorad = Callable[..., tuple[int, str, str]]


@pytest.fixture
def palorad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Palorad:
    """Runs a command in a directory with a configuration and, for `status`, a daemon's answer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PALORAD_CONFIG", raising=False)
    (tmp_path / "config.toml").write_text("")

    def run(*command: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["palorad", *command])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def begun(root: Path) -> None:
    (root / "state").mkdir()
    with Ledger.open(root / "state" / "ledger.db") as ledger:
        ledger.revisions.ensure_base("base", NOW)


def answers(monkeypatch: pytest.MonkeyPatch, **view: object) -> None:
    daemon = DaemonView.model_validate({"pid": 7, "server": "vllm", **view})
    monkeypatch.setattr(Client, "daemon", lambda _: daemon)


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize(
    ("view", "code"),
    [
        ({"replicas": (READY,)}, 0),
        ({"replicas": (READY,), "blocked": "3 facts wait: quiet hours"}, 0),
        ({"replicas": (READY,), "waits": ("the server wakes after training",)}, 0),
        ({"replicas": (LOADING,)}, 0),
        ({"replicas": (READY,), "trouble": ("the disk is full",)}, 1),
        ({"replicas": (READY, AWAY)}, 1),
    ],
)
def test_status_tells_trouble_from_what_only_waits(
    palorad: Palorad,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    view: dict[str, object],
    code: int,
    form: tuple[str, ...],
) -> None:
    begun(tmp_path)
    answers(monkeypatch, **view)
    ended, out, _ = palorad("status", *form)
    assert ended == code
    assert "target" in out


def test_status_without_a_daemon_ends_with_four_before_and_after_the_first_run(
    palorad: Palorad, tmp_path: Path
) -> None:
    code, out, said = palorad("status")
    assert (code, out) == (4, "")
    assert "palorad run" in said
    begun(tmp_path)
    code, out, _ = palorad("status")
    assert code == 4
    assert "target: revision 0" in out


def ending() -> Iterator[str]:
    """The commands of the source that end with a code of their own."""
    for path in (*(ROOT / "daemon" / "cli").glob("*.py"), ROOT / "demo" / "command.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "raise typer.Exit(" in ast.unparse(node):
                yield node.name.replace("_", " ")


def test_the_table_has_every_command_that_ends_with_a_code_of_its_own() -> None:
    assert set(COMMANDS) == set(ending())
    assert set(COMMANDS) <= set(KNOWN)
    for codes in COMMANDS.values():
        assert set(codes) - set(EVERY_COMMAND) <= {1, 3}
