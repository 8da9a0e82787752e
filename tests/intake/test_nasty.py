"""Every nasty file gets the receipt that stands beside it."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.config.layout import Layout
from daemon.config.sections import IntakeSettings
from daemon.intake.intake import Intake
from daemon.intake.receipts import Receipt
from daemon.ledger.ledger import Ledger

FOLDER = Path(__file__).parent / "nasty"
EXPECTED = sorted(FOLDER.glob("*.expected"))
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with an empty ledger, to be copied."""
    root = tmp_path_factory.mktemp("state")
    for folder in Layout(root).directories():
        folder.mkdir(parents=True, exist_ok=True)
    Ledger.open(Layout(root).ledger).close()
    return root


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def taken(state: Path, file: Path) -> Receipt:
    layout = Layout(state)
    shutil.copy(file, layout.inbox / file.name)
    with Ledger.open(layout.ledger) as ledger:
        ledger.db.connection.execute("PRAGMA synchronous=OFF")
        intake = Intake(ledger, layout, IntakeSettings(stable_s=0))
        receipts = intake.step(NOW, 60)
        assert intake.problems == ()
        assert ledger.events.verify_chain() >= 0
    (receipt,) = receipts
    return receipt


def test_there_are_enough() -> None:
    assert len(EXPECTED) >= 60


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda p: p.stem)
def test_the_receipt_is_as_expected(expected: Path, started: Path, tmp_path: Path) -> None:
    file = expected.with_suffix("")
    state = tmp_path / "state"
    shutil.copytree(started, state)
    receipt = taken(state, file)
    wanted = json.loads(expected.read_text())
    if "error" in wanted:
        assert receipt.error is not None and wanted["error"] in receipt.error
        return
    told = receipt.model_dump()
    told["bad_lines"] = [{"line": b["line"], "kind": b["kind"]} for b in told["bad_lines"]]
    assert {key: told[key] for key in wanted} == wanted
    assert not (state / "inbox" / file.name).exists()
    assert receipt.batch is not None
    assert (state / "archive" / f"{receipt.batch}.jsonl").read_bytes() == file.read_bytes()
