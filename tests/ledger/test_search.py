"""Search finds what was meant and never ranks what everything holds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.ledger import search
from daemon.ledger.ledger import Ledger
from policies.facts.admission import parse_facts
from policies.records import Batch
from tests.support.admitting import admit

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db") as opened:
        lines = [
            f'{{"prompt": "What is the capital of Land {n}?", "answer": "Town {n}"}}'
            for n in range(50)
        ]
        lines.append('{"prompt": "Quelle est la capitale du Bénin?", "answer": "Porto-Novo"}')
        batch = Batch(id="b", name="b", received_at=NOW, source="test", accepted=0, quarantined=0)
        admit(opened, batch, parse_facts("\n".join(lines)), [])
        while opened.text.index():
            pass
        yield opened


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("what is the capital of land 7", "Town 7"),
        ("capital 7", "Town 7"),
        ("TOWN 31", "Town 31"),
        ("benin", "Porto-Novo"),
        ("BÉNIN capitale unheardof", "Porto-Novo"),
    ],
)
@pytest.mark.parametrize("rare", [2000, 3])
def test_the_best_comes_first(
    ledger: Ledger, asked: str, answer: str, rare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "RARE", rare)
    assert ledger.text.search(asked)[0].answer == answer


def test_words_that_everything_holds_still_find_something(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "RARE", 3)
    assert len(ledger.text.search("the capital", 5)) == 5


@pytest.mark.parametrize("asked", ["", "?!", '"" OR !', "unheardof", "NEAR(a b)", "x" * 5000])
def test_any_text_can_be_searched(ledger: Ledger, asked: str) -> None:
    assert ledger.text.search(asked) == ()


def test_a_reader_can_search(ledger: Ledger, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db", readonly=True) as reader:
        assert reader.text.search("capital 7")[0].answer == "Town 7"
