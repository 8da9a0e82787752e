"""The state directory of a stopped daemon can be moved; the daemon goes on where it lies now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.base.control import ask
from daemon.ledger.ledger import Ledger
from daemon.loop import requests
from daemon.training.messages import ProbeReport
from tests.support.crashing import Site
from tests.support.world import World


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def paths_in(state_dir: Path, root: Path) -> list[str]:
    """Every file of the state directory, and every value of its ledger, that names `root`."""
    found = []
    with Ledger.open(state_dir / "ledger.db", readonly=True) as ledger:
        for (table,) in ledger.db.rows("SELECT name FROM sqlite_schema WHERE type = 'table'"):
            if not table.startswith("facts_text"):
                for row in ledger.db.rows(f"SELECT * FROM {table}"):
                    found += [f"{table}: {value}" for value in row if str(root) in str(value)]
    for path in state_dir.rglob("*"):
        below = path.relative_to(state_dir).parts[0]
        if path.is_file() and below not in ("ledger.db", "work"):
            found += [str(path)] if str(root).encode() in path.read_bytes() else []
    return found


def test_a_moved_state_directory_serves_learns_rolls_back_and_forgets(
    site: Site, tmp_path: Path
) -> None:
    site.drop("first.jsonl", ["one"])
    site.drop("second.jsonl", ["two"])
    assert site.stop() == 0
    former = site.settings.state_dir
    assert paths_in(former, former) == []

    site.move(tmp_path / "t")
    assert not former.exists()
    site.drop("third.jsonl", ["three"])
    with site.reading() as ledger:
        assert ledger.revisions.target().number == 3
    site.point("rollback", 1)
    site.point("forward", 3)
    ask(site.layout.control_socket, "retract", fact="two")
    site.until(lambda: any(site.layout.certificates.iterdir()), "forgetting")
    assert not former.exists()


def test_the_probe_is_found_where_the_state_directory_lies_now(tmp_path: Path) -> None:
    world = World(tmp_path)
    fitted = world.settings.layout.probe("base-sha")
    fitted.mkdir(parents=True)
    report = ProbeReport(
        probe=fitted,
        served_dir=world.settings.model.path,
        served_sha256="base-sha",
        base_sha256="base-sha",
        fitted=True,
        seconds=1.0,
    )
    requests.remember_probe(world.ledger, world.settings, report)
    moved = world.settings.model_copy(update={"state_dir": tmp_path / "moved"})
    world.settings.state_dir.rename(moved.state_dir)
    found = requests.remembered_probe(world.ledger, moved)
    assert found is not None
    assert found.probe == moved.layout.probe("base-sha")
    assert found.served_dir == world.settings.model.path
