"""`palorad verify` as a person and a program run it: its lines, its JSON, its exit codes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.cli import main
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop.preflight import prepare_state
from daemon.verification.keeper import Keeper
from tests.support.fake_vllm import publish
from tests.support.tampering import written

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
Ran = tuple[int, str]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A state directory as a daemon leaves it that has paused and resumed."""
    (tmp_path / "config.toml").write_text(
        'state_dir = "s"\nserver = { mode = "attach", urls = ["http://127.0.0.1:9"] }\n'
    )
    made = Settings.load(tmp_path / "config.toml")
    prepare_state(made)
    with Ledger.open(made.layout.ledger) as ledger:
        keeper = Keeper(ledger, made.layout, made.anchor, lambda: 0.0)
        keeper.begin(NOW)
        ledger.revisions.ensure_base("base", NOW)
        ledger.meta.pause(True, "a test", NOW)
        ledger.meta.pause(False, "a test", NOW)
        keeper.sign(NOW)
    return made


@pytest.fixture
def palorad_verify(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Ran]:
    def run(*options: str) -> Ran:
        command = ["palorad", "verify", "--config", str(tmp_path / "config.toml"), *options]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return run


def test_all_is_well(palorad_verify: Callable[..., Ran], settings: Settings) -> None:
    publish(settings.layout.served, 1)
    code, said = palorad_verify()
    assert code == 0
    assert "everything is what was written: " in said
    assert "2 events" in said and "1 directories" in said
    assert "left out: http://127.0.0.1:9" in said
    code, text = palorad_verify("--json")
    report = json.loads(text)
    assert (code, report["code"], report["findings"], report["unchecked"]) == (0, 0, [], [])


def test_findings_say_what_where_and_what_to_do(
    palorad_verify: Callable[..., Ran], settings: Settings
) -> None:
    with written(settings.layout) as raw:
        raw.execute("DELETE FROM events WHERE seq = 2")
    code, said = palorad_verify()
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("HISTORY")]
    assert str(settings.layout.ledger) in line
    assert "the history was cut off behind event 1: event 2 had been signed; restore" in line
    code, text = palorad_verify("--json", "--quick")
    (finding,) = json.loads(text)["findings"]
    assert (code, finding["check"]) == (1, "history")
    assert set(finding) == {"check", "where", "what", "advice"}


def test_what_could_not_be_looked_at_is_another_code(
    palorad_verify: Callable[..., Ran], settings: Settings
) -> None:
    settings.layout.ledger.unlink()
    code, said = palorad_verify()
    assert code == 2
    assert "NOT VERIFIED" in said and "there is no ledger yet" in said


def test_heads_that_came_from_elsewhere_are_compared_with(
    palorad_verify: Callable[..., Ran], settings: Settings, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.jsonl"
    shutil.copy(settings.layout.anchor, kept)
    assert palorad_verify("--anchor", str(kept))[0] == 0
    with written(settings.layout) as raw:
        raw.execute("UPDATE events SET hash = 'other' WHERE seq = 2")
    code, said = palorad_verify("--anchor", str(kept))
    assert code == 1
    assert said.count("the history was rewritten") == 2


def test_accepting_needs_the_daemon_and_says_so(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["palorad", "verify", "--config", str(tmp_path / "config.toml"), "--accept"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 4
    assert "start it with `palorad run`" in " ".join(capsys.readouterr().err.split())
