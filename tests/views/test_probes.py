"""What the page says of the probe in use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.config.settings import Settings
from daemon.ledger.database import Database
from daemon.ledger.ledger import Ledger
from daemon.views.probes import probe_view
from demo.setup import MODEL

PROBE = MODEL / "probe"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Database.in_memory(tmp_path / "ledger.db"))


def test_the_card_of_the_probe_in_use_is_shown(ledger: Ledger, tmp_path: Path) -> None:
    ledger.meta.remember("probe", json.dumps({"report": {"probe": str(PROBE)}}))
    view = probe_view(ledger, Settings(state_dir=tmp_path))
    card = json.loads((PROBE / "probe.json").read_text())
    assert view.fitted
    assert view.overlap == card["overlap"]["jaccard"]
    assert view.informative == card["informative"]
    assert len(view.matrices) == len(card["matrices"])
    first = view.matrices[0]
    assert first.protected == round(view.share * first.inputs) > 0


@pytest.mark.parametrize("kept", ["", "{}", json.dumps({"report": {"probe": "gone"}})])
def test_before_the_first_probe_there_is_none(ledger: Ledger, tmp_path: Path, kept: str) -> None:
    ledger.meta.remember("probe", kept)
    view = probe_view(ledger, Settings(state_dir=tmp_path))
    assert not view.fitted
    assert view.matrices == ()
