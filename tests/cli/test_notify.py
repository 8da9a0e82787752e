"""`palorad notify`: what was not taken is listed, and everything else needs the daemon."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.cli import main, session
from daemon.ledger.ledger import Ledger

NOW = datetime(2026, 1, 1, tzinfo=UTC)

Palorad = Callable[..., tuple[int, str]]


@pytest.fixture
def palorad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Palorad:
    monkeypatch.setattr(session.console, "_width", 160)
    config = tmp_path / "config.toml"
    config.write_text("")
    (tmp_path / "state").mkdir()

    def run(*command: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["palorad", "notify", *command, "-c", str(config)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out + captured.err

    return run


def test_the_outbox_is_listed_with_what_the_receiver_said(palorad: Palorad, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "state" / "ledger.db") as ledger:
        assert palorad("list") == (0, "the outbox is empty\n")
        first, second = ledger.outbox.test(NOW), ledger.outbox.test(NOW)
        ledger.outbox.undelivered(first, "answers 500", 9.0, 9.0)
        third = ledger.outbox.test(NOW)
    code, out = palorad("list")
    assert code == 0
    assert "dead letter: answers 500" in out and "waits" in out
    listed = json.loads(palorad("list", "--json")[1])
    assert [one["event"]["seq"] for one in listed["dead"]] == [first, second]
    assert [one["event"]["seq"] for one in listed["waiting"]] == [third]


@pytest.mark.parametrize("command", ["test", "retry", "discard"])
def test_without_a_daemon_it_ends_with_four(palorad: Palorad, command: str) -> None:
    code, out = palorad(command)
    assert code == 4 and "palorad run" in out
