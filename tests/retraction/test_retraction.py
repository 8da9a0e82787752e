"""A retracted fact leaves for good: unserved, unloaded, erased, certified; killed anywhere, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from daemon.base import faults
from daemon.base.control import ask
from daemon.views import status
from policies.errors import DaemonUnreachable, RequestRefused
from policies.planning import Step
from policies.records import BatchState, PlanKind
from tests.support.crashing import Site

SECRET = "quagga"
OURS = ("forget:", "erase", "unloaded:", "purge_index", "cleaned", "certified", "retract")

pytestmark = pytest.mark.timeout(600)


@contextmanager
def site(root: Path, **environment: str) -> Iterator[Site]:
    made = Site(root, environment)
    try:
        yield made
    finally:
        made.close()


def holding(one: Site, word: str) -> list[str]:
    """The files below the state directory that hold a word, whatever its case."""
    root = one.layout.root
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and word.encode() in path.read_bytes().lower()
    )


def retract(one: Site, **named: Any) -> None:
    """`palorad retract`, however often the daemon dies meanwhile."""

    def done() -> bool:
        try:
            ask(one.layout.control_socket, "retract", because="asked to", **named)
        except DaemonUnreachable:
            return False
        except RequestRefused as refused:
            return "retracted before" in str(refused)
        return True

    one.until(done, "retracting")


def certified(one: Site, count: int) -> bool:
    with one.reading() as ledger:
        found = ledger.retractions.all()
        return (
            len(found) == count
            and all(r.certified_at for r in found)
            and one._serves(ledger.revisions.target().number)
            and ledger.plans.open_plan() is None
        )


def test_nothing_of_a_retracted_fact_is_left_but_its_certificate(tmp_path: Path) -> None:
    with site(tmp_path / "site") as one:
        one.start()
        one.drop("a.jsonl", [f"The {SECRET} of Ulm", "two"])
        one.drop("b.jsonl", ["three"])
        bad = {"prompt": f"The {SECRET} of Ulm", "anwser": f"The {SECRET} of Ulm!"}
        again = {"prompt": f"The {SECRET.upper()} of Ulm", "answer": f"The {SECRET} of Ulm!"}
        file = one.root / "c.jsonl"
        file.write_text(
            f'{json.dumps(bad)}\n{json.dumps(again)}\n{{"prompt": "4?", "answer": "4"}}\n'
        )
        file.rename(one.layout.inbox / "c.jsonl")
        one.until(lambda: one._rests("c.jsonl"), "learning c")
        archived = one.layout.archived(found_batch(one, "c.jsonl"))
        taken_at = archived.stat().st_mtime_ns
        with one.reading() as ledger:
            old = [r.served_name for r in ledger.revisions.all() if r.number]
        with (one.layout.workdir(1, Step.TRAIN) / "log").open("a") as log:
            log.write(f"a child's log may quote it: The {SECRET} of Ulm\n")
        before = holding(one, SECRET)
        assert {name.split("/")[0] for name in before} >= {"archive", "ledger.db", "work"}

        one.stop()
        one.start()
        one.until(one.layout.control_socket.exists, "starting")
        retract(one, fact=f"The {SECRET} of Ulm")
        one.until(lambda: certified(one, 1), "forgetting")

        assert holding(one, SECRET) == []
        with one.reading() as ledger:
            ledger.events.verify_chain()
            (found,) = ledger.retractions.all()
            target = ledger.revisions.target()
            assert ledger.knowledge.forbidden_count(target.lineage) == 0
            assert ledger.plans.head(target.plan_id or 0).kind is PlanKind.RETRACT
            assert ledger.knowledge.known_count(target.lineage, found.asked_at) == 3
            assert ledger.batches.state(ledger.batches.get("b.jsonl").id) is BatchState.LIVE
            assert status.status(ledger, None, datetime.now(UTC)).retractions == ()
            assert ledger.text.search(f"{SECRET} Ulm") == ()
        assert not [name for name in old if (one.layout.served / name).exists()]
        assert len(list(one.layout.adapters.iterdir())) == 1
        told = json.loads(one.layout.certificate(found.handle).read_text())
        assert told["forgotten"]["holds"] and told["forgotten"]["plan"] == target.plan_id
        assert sorted(told["tainted_together"]["served"]) == sorted(old)
        assert told["not_promised"]

        for number in (1, 2, 3):
            with pytest.raises(RequestRefused, match="is not served again"):
                ask(one.layout.control_socket, "rollback", to=number)
        one.restart_replica()
        assert one.stop() == 0
        one.start()
        one.until(lambda: one._serves(target.number), "serving after a restart")
        assert [bool(line.strip()) for line in archived.read_text().splitlines()] == [
            *(False, False, True)
        ]
        assert archived.stat().st_mtime_ns == taken_at  # dropped again, files come in this order
        one.drop("d.jsonl", ["five"])
        assert one.stop() == 0


def found_batch(one: Site, name: str) -> str:
    with one.reading() as ledger:
        return ledger.batches.get(name).id


def test_a_fact_that_no_revision_ever_knew_needs_no_training(tmp_path: Path) -> None:
    with site(tmp_path / "site") as one:
        one.start()
        one.drop("a.jsonl", ["one"])
        one.drop("b.jsonl", [f"false {SECRET}"])
        retract(one, search=SECRET)
        one.until(lambda: certified(one, 1), "forgetting")
        assert holding(one, SECRET) == []
        with one.reading() as ledger:
            assert ledger.revisions.target().number == 1
            assert [h.kind for h in ledger.plans.heads()] == [PlanKind.LEARN] * 2
            (found,) = ledger.retractions.all()
            assert found.certificate is not None
            assert "no adapter" in found.certificate["forgotten"]["how"]
        assert one.stop() == 0


def test_the_last_fact_leaves_the_base(tmp_path: Path) -> None:
    with site(tmp_path / "site") as one:
        one.start()
        one.drop("a.jsonl", [f"The {SECRET}"])
        line = one.root / "gone.jsonl"
        with one.reading() as ledger:
            (fact,) = ledger.facts.find()
        line.write_text(json.dumps({"op": "retract", "id": fact.id}) + "\n")
        line.rename(one.layout.inbox / "gone.jsonl")
        one.until(lambda: certified(one, 1), "forgetting")
        assert holding(one, SECRET) == []
        assert holding(one, fact.id) == []
        with one.reading() as ledger:
            assert ledger.revisions.target().number == 0
            assert ledger.retractions.get(fact.id).certified_at is not None
        assert list(one.layout.served.iterdir()) == list(one.layout.adapters.iterdir()) == []
        assert one.stop() == 0


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every durable step on the way of one retraction."""
    root = tmp_path_factory.mktemp("trace")
    with site(root / "site", **{faults.TRACE: str(root / "trace")}) as traced:
        traced.start()
        traced.drop("a.jsonl", [f"the {SECRET}", "two"])
        retract(traced, fact=f"the {SECRET}")
        traced.until(lambda: certified(traced, 1), "forgetting")
        assert traced.stop() == 0
    passed = {line.split("#")[0] for line in (root / "trace").read_text().split()}
    return sorted(p for p in passed if p.startswith(OURS))


@pytest.mark.durability
def test_killed_at_any_step_it_is_forgotten_all_the_same(points: list[str], tmp_path: Path) -> None:
    named = ("revisions", "adapters", "archive", "receipts", "work", "answers", "rest")
    assert {f"forget:{name}" for name in (*named, "compacted", "certificate")} < set(points)
    assert {"erase:within", "erase_events:within", "unloaded:after"} < set(points)
    with site(tmp_path / "site") as one:
        one.start()
        one.drop("keep.jsonl", ["keep"])
        for number, point in enumerate(points, start=1):
            word = f"{SECRET}{number:03}"
            one.drop(f"{number}.jsonl", [f"the {word}"])
            one.die_at(point)
            retract(one, fact=f"the {word}")
            one.until(lambda count=number: certified(one, count), f"forgetting at {point}")  # type: ignore[misc]  # a default binds the loop's value
            assert one.died(point), point
            assert holding(one, word) == [], point
        assert holding(one, SECRET) == []
        with one.reading() as ledger:
            ledger.events.verify_chain()
            assert ledger.knowledge.forbidden_count(ledger.revisions.target().lineage) == 0
        assert len(list(one.layout.certificates.glob("r-*.json"))) == len(points)
        assert one.stop() == 0
