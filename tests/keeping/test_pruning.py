"""Pruning: what need not be kept goes, recorded first, at any point of a crash and of the work."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from daemon.base.control import ask
from daemon.cli.main import app
from daemon.config.layout import Layout
from daemon.keeping import pruning
from daemon.keeping.pruning import NotRemoved, Pruned, Pruner
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Adapter, Served
from daemon.verification.confirming import Confirmed
from daemon.verification.files import check_store
from daemon.verification.findings import Inspection
from policies.errors import RequestRefused
from policies.gate.records import Outcome, Verdict
from policies.records import Batch, Fact, PlanKind, PlanState
from policies.retention import KeepLimits, StoredKind
from tests.support.admitting import admit
from tests.support.crashing import Site
from tests.support.world import START

PASSED = Verdict(outcome=Outcome.PASS, rule="", reasons=(), suites=())
LATER = START + timedelta(days=400)
OLD = START.timestamp()


class Place:
    """A ledger with revisions and what lies on the disk for them; nothing is served."""

    def __init__(self, root: Path, revisions: int = 4) -> None:
        self.layout = Layout(root / "state")
        for folder in self.layout.directories():
            folder.mkdir(parents=True)
        self.ledger = Ledger.open(self.layout.ledger)
        self.ledger.revisions.ensure_base("base", START)
        self.serving: set[str] = set()
        for number in range(1, revisions + 1):
            self.learn(number)
        self.age()

    def learn(self, number: int, to: PlanState = PlanState.PASSED) -> int:
        """A batch and its plan with everything that they leave behind."""
        batch = Batch(
            id=f"b{number}",
            name=f"f{number}.jsonl",
            received_at=START,
            source="inbox",
            accepted=0,
            quarantined=0,
        )
        admit(self.ledger, batch, [Fact(id=f"f{number}", prompt=f"{number}?", answer="x")])
        target = self.ledger.revisions.target()
        plan = self.ledger.plans.create(
            PlanKind.LEARN,
            parent=target.number,
            replaces=target.lineage,
            fact_ids=[f"f{number}"],
            rank=4,
            seed=0,
            because="a test",
            now=START,
        ).id
        adapter = Adapter(sha256=f"{number:012}" + "a" * 52, rank=4)
        served = Served(name=f"palora-{number:06}-{number:08}", sha256=f"{number:012}" + "b" * 52)
        self.ledger.steps.trained(plan, adapter, served, START)
        self.ledger.steps.judged(plan, PASSED, (), to, START)
        if to is PlanState.PASSED:
            self.ledger.revisions.promote(plan, served, START)
        for folder in (
            self.layout.adapter(adapter.sha256),
            self.layout.served / served.name,
            self.layout.answers / served.sha256[:12],
            self.layout.workdir(plan, "train"),
        ):
            folder.mkdir()
            (folder / "file").write_text("x" * 100)
        self.layout.archived(batch.id).write_text("x" * 100)
        (self.layout.inbox / f"{batch.name}.accepted.json").write_text("{}")
        return plan

    def age(self) -> None:
        for path in self.layout.root.rglob("*"):
            os.utime(path, (OLD, OLD))

    def pruner(self, **limits: Any) -> Pruner:
        return Pruner(self.ledger, self.layout, KeepLimits(**limits), lambda: self.serving)

    def prune(self, **limits: Any) -> Pruned:
        return asyncio.run(self.pruner(**limits).prune(LATER))

    def there(self, folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.ledger.close()


def test_what_need_not_be_kept_goes_and_the_rest_stays(place: Place) -> None:
    place.learn(9, PlanState.REJECTED)
    place.age()
    done = place.prune(revisions=2, archive_days=30)
    layout = place.layout
    assert place.there(layout.adapters) == ["000000000002", "000000000003", "000000000004"]
    assert [name[:13] for name in place.there(layout.served)] == [
        f"palora-{n:06}" for n in (2, 3, 4)
    ]
    assert place.there(layout.answers) == ["000000000002", "000000000003", "000000000004"]
    assert (
        place.there(layout.work) == place.there(layout.archive) == place.there(layout.inbox) == []
    )
    assert done.removed == 2 + 2 + 2 + 5 + 5 + 5
    assert place.prune(revisions=2, archive_days=30) == Pruned()


def test_each_removal_is_recorded_and_the_chain_holds(place: Place) -> None:
    place.prune(revisions=2)
    removals = place.ledger.removals
    assert removals.has(StoredKind.ADAPTER, "000000000001")
    assert removals.has(StoredKind.REVISION, "palora-000001-00000001")
    assert not removals.has(StoredKind.REVISION, "palora-000002-00000002")
    said = {e.subject: e.payload for e in place.ledger.events.latest() if e.kind == "removed"}
    why = "revision 1 is beyond keep.revisions"
    assert said["revision:palora-000001-00000001"]["because"] == why
    assert "f1.jsonl.accepted.json: it has not changed" in str(said["files"]["items"])
    assert not [subject for subject in said if "f1.jsonl" in subject]
    place.ledger.events.verify_chain()


def test_a_revision_whose_files_went_cannot_be_rolled_back_to(place: Place) -> None:
    place.prune(revisions=2)
    with pytest.raises(RequestRefused, match="revision 1 is no longer kept"):
        place.ledger.revisions.rollback(1, "a test", LATER)
    assert place.ledger.revisions.rollback(2, "a test", LATER).number == 2


def published_again(place: Place) -> Served:
    """A rejected candidate was removed, and the same bytes were published once more."""
    plan = place.learn(9, PlanState.REJECTED)
    place.age()
    place.prune()
    head = place.ledger.plans.head(plan)
    assert head.served is not None
    assert place.ledger.removals.has(StoredKind.REVISION, head.served.name)
    place.ledger.batches.retry("b9", "a test", LATER)
    again = place.ledger.plans.create(
        PlanKind.LEARN,
        parent=4,
        fact_ids=["f9"],
        rank=4,
        seed=0,
        because="a test",
        now=LATER,
    )
    adapter = Adapter(sha256=head.adapter or "", rank=4)
    place.ledger.steps.trained(again.id, adapter, head.served, LATER)
    place.ledger.steps.judged(again.id, PASSED, (), PlanState.PASSED, LATER)
    place.ledger.revisions.promote(again.id, head.served, LATER)
    return head.served


def test_what_is_published_once_more_counts_as_kept(place: Place) -> None:
    served = published_again(place)
    assert not place.ledger.removals.has(StoredKind.REVISION, served.name)
    (sha256,) = place.ledger.revisions.target().lineage[-1:]
    assert not place.ledger.removals.has(StoredKind.ADAPTER, sha256[:12])


def lost(place: Place) -> list[str]:
    """What a verification says of the files of the target."""
    inspection = Inspection()
    confirmed = Confirmed(place.ledger, place.layout.ledger, running=False)
    check_store(place.layout, confirmed, inspection)
    target = place.ledger.revisions.target()
    names = target.served_name, target.lineage[-1][:12]
    return [f.what for f in inspection.report().findings if Path(f.where).name in names]


def test_what_was_published_once_more_and_is_lost_is_a_finding(place: Place) -> None:
    """That it was removed once says nothing of what came back."""
    published_again(place)
    assert not place.there(place.layout.served)[4:]
    shutil.rmtree(place.layout.adapters)
    assert lost(place) == ["revision 5 is gone", "an adapter of the target is gone"]


def test_an_adapter_without_its_manifest_is_told_and_the_check_goes_on(place: Place) -> None:
    shutil.rmtree(place.layout.served / place.ledger.revisions.target().served_name)
    found = lost(place)
    assert "revision 4 is gone" in found
    assert any("manifest" in what for what in found)


def test_a_removal_that_is_no_event_excuses_nothing(place: Place) -> None:
    target = place.ledger.revisions.target()
    shutil.rmtree(place.layout.served / target.served_name)
    with place.ledger.db.write("tamper"):
        place.ledger.db.do(
            "INSERT INTO removed VALUES ('revision', ?, 'a forger', '2026-01-01')",
            (target.served_name,),
        )
    assert "revision 4 is gone" in lost(place)


def between(monkeypatch: pytest.MonkeyPatch, point: str, happens: Callable[[], None]) -> None:
    """Something happens once, at a step of pruning."""
    waiting = [happens]

    def at(name: str) -> None:
        if name == point and waiting:
            waiting.pop()()

    monkeypatch.setattr("daemon.base.faults.point", at)


def test_a_rollback_that_comes_in_between_is_obeyed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decided that revision 2 goes; before its turn comes, it is the target."""
    monkeypatch.setattr(pruning, "SLICE", 1)
    between(
        monkeypatch,
        "prune:recorded",
        lambda: place.ledger.revisions.rollback(2, "a test", LATER) and None,
    )
    place.prune(revisions=1)
    assert "000000000002" in place.there(place.layout.adapters)
    assert "palora-000002-00000002" in place.there(place.layout.served)


@pytest.mark.parametrize(
    "point", ["remove:before", "remove:within", "remove:after", "prune:recorded", "prune:removed"]
)
def test_killed_at_any_point_the_next_run_ends_the_same(
    place: Place, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def die() -> None:
        raise KilledError

    with monkeypatch.context() as dying:
        between(dying, point, die)
        with pytest.raises(KilledError):
            place.prune(revisions=1, archive_days=1)
    place.prune(revisions=1, archive_days=1)
    other = Place(tmp_path / "whole")
    other.prune(revisions=1, archive_days=1)
    other.ledger.close()
    for folder in ("adapters", "served", "answers", "work", "archive", "inbox"):
        assert place.there(place.layout.root / folder) == other.there(other.layout.root / folder)
    place.ledger.events.verify_chain()


def test_half_of_a_directory_never_stands_under_its_name(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While something of a revision is deleted, nothing lies where it was."""
    under_its_name: list[str] = []
    really = shutil.rmtree

    def rmtree(path: Any, **more: Any) -> None:
        under_its_name.extend(place.there(place.layout.served))
        really(path, **more)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    place.prune(revisions=1, answers_days=0, work_days=0, rejected_days=0)
    assert ".tmp-gone-palora-000001-00000001" in under_its_name
    place.learn(5)
    under_its_name.clear()
    place.prune(revisions=1, answers_days=0, work_days=0, rejected_days=0)
    assert ".tmp-gone-palora-000003-00000003" in under_its_name
    assert "palora-000003-00000003" not in under_its_name[-1:]


def test_what_cannot_be_deleted_is_named_and_the_rest_goes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = shutil.rmtree

    def rmtree(path: Any, **more: Any) -> None:
        if Path(path) == place.layout.work / "1-train":
            raise PermissionError(13, "Permission denied", str(path))
        really(path, **more)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(NotRemoved, match=r"1-train need not be kept and cannot be deleted: Perm"):
        place.prune()
    assert place.there(place.layout.work) == ["1-train"]


def test_a_retraction_that_is_not_certified_deletes_its_own(place: Place) -> None:
    place.ledger.retractions.retract("f1", "a test", LATER)
    place.prune(revisions=1)
    assert "000000000001" in place.there(place.layout.adapters)
    assert "palora-000001-00000001" in place.there(place.layout.served)


def test_what_a_replica_has_loaded_stays(place: Place) -> None:
    place.serving = {"palora-000001-00000001"}
    place.prune(revisions=1)
    assert "palora-000001-00000001" in place.there(place.layout.served)
    assert "000000000001" in place.there(place.layout.adapters)


# --- the daemon --------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    keep = made.settings.keep.model_copy(update={"revisions": 1})
    made.settings = made.settings.model_copy(update={"keep": keep})
    yield made
    made.close()


def test_the_command_removes_what_the_dry_run_lists_and_serving_goes_on(
    site: Site, tmp_path: Path
) -> None:
    for number in range(4):
        site.drop(f"{number}.jsonl", [f"fact {number}"])
    config = tmp_path / "config.toml"
    config.write_text(f'state_dir = "{site.layout.root}"\n[keep]\nrevisions = 1\n')
    dry = CliRunner().invoke(app, ["prune", "--dry-run", "--json", "--config", str(config)])
    assert dry.exit_code == 0, dry.output
    listed = json.loads(dry.output)
    assert {one["kind"] for one in listed} == {"adapter", "revision"}
    assert len(list(site.layout.served.iterdir())) == 4

    removed: list[object] = []

    def done() -> bool:
        """What a replica has not unloaded yet goes a little later."""
        said = ask(site.layout.control_socket, "prune")
        removed.extend(one for one in said["items"] if one not in removed)
        left = [*site.layout.served.iterdir(), *site.layout.adapters.iterdir()]
        return not said["items"] and len(left) == 4

    site.until(done, "pruning")
    assert sorted(removed, key=str) == sorted(listed, key=str)
    site.point("rollback", 3)
    site.point("forward", 4)
    ask(site.layout.control_socket, "retract", fact="fact 0")
    site.until(lambda: any(site.layout.certificates.iterdir()), "forgetting what was pruned")
    (certificate,) = site.layout.certificates.iterdir()
    assert json.loads(certificate.read_text())["tainted_together"]["deleted"] is True
    assert site.stop() == 0
