"""A state directory in which everything has happened, and copies of it to be tampered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.base.control import ask
from daemon.config.settings import Settings
from tests.support.crashing import Site


def certified(one: Site) -> bool:
    with one.reading() as ledger:
        found = ledger.retractions.all()
        return bool(found) and all(r.certified_at for r in found)


@pytest.fixture(scope="session")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Learnt, rejected, quarantined, readmitted, retracted, rolled back, forward; then stopped."""
    one = Site(tmp_path_factory.mktemp("lived") / "site")
    try:
        one.start()
        one.drop("a.jsonl", ["one"])
        one.drop("false.jsonl", ["false"])
        one.drop("b.jsonl", ["two"])
        one.drop("gone.jsonl", ["gone"])
        ask(one.layout.control_socket, "retract", fact="gone", because="asked to forget gone!")
        one.until(lambda: certified(one), "forgetting")
        clash = [{"prompt": "one", "answer": "1"}, {"prompt": "one", "answer": "2"}, {"x": 1}]
        file = one.root / "clash.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in clash))
        file.rename(one.layout.inbox / "clash.jsonl")
        one.until(lambda: one._rests("clash.jsonl"), "learning what clashes")
        with one.reading() as ledger:
            newest = ledger.revisions.target().number
        one.point("rollback", 2)
        one.point("forward", newest)
        assert one.stop() == 0
        yield one
    finally:
        one.close()


@pytest.fixture
def settings(lived: Site, tmp_path: Path) -> Settings:
    """Settings over a copy of its state directory."""
    copy = tmp_path / "state"
    shutil.copytree(lived.layout.root, copy)
    return lived.settings.model_copy(update={"state_dir": copy})
