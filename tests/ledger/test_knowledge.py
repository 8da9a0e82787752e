"""What adapters know and replay follows from their plans; retraction finds all that may know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Adapter, PlanHead, Served
from policies.errors import Superseded
from policies.gate.records import Outcome, Verdict
from policies.planning import Limits, MakePlan
from policies.records import Batch, Fact, PlanKind, PlanState, Revision
from tests.support.admitting import admit

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LIMITS = Limits(rank=4, rank_budget=16, max_rank=64, max_facts=100, attempts=3)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db") as opened:
        opened.revisions.ensure_base("base", NOW)
        yield opened


def drop(ledger: Ledger, name: str, numbers: range, answer: str = "a") -> None:
    batch = Batch(id=name, name=name, received_at=NOW, source="inbox", accepted=0, quarantined=0)
    facts = [Fact(id=f"{name}-{n}", prompt=f"What is {n}?", answer=answer) for n in numbers]
    admit(ledger, batch, facts)


def plan(
    ledger: Ledger, kind: PlanKind = PlanKind.LEARN, *, warm: bool = True, most: int = 1000
) -> PlanHead:
    """A plan for all that waits, from the whole lineage or (a stack) beside it; or a rebuild."""
    learns = kind is PlanKind.LEARN
    action = MakePlan(
        kind=kind,
        rank=4,
        seed=0,
        because="",
        fact_ids=tuple(w.id for w in ledger.facts.waiting(NOW, 1000)) if learns else (),
        replaces=ledger.revisions.target().lineage if warm or not learns else (),
    )
    return ledger.planning.make_plan(action, NOW, max_replay=most)


def train(ledger: Ledger, made: PlanHead, *missed: str, sha256: str = "") -> Served:
    adapter = Adapter(sha256=sha256 or f"a{made.id}", rank=4)
    served = Served(name=f"palora-{made.id:06}", sha256=f"s{made.id}")
    ledger.steps.trained(made.id, adapter, served, NOW)
    verdict = Verdict(outcome=Outcome.PASS, rule="", reasons=(), suites=(), not_learnt=missed)
    ledger.steps.judged(made.id, verdict, (), PlanState.PASSED, NOW)
    return served


def live(ledger: Ledger, made: PlanHead, *missed: str) -> Revision:
    return ledger.revisions.promote(made.id, train(ledger, made, *missed), NOW, relearn=1)


def republished(ledger: Ledger) -> None:
    """a1 by plan 1, a2 from it by plan 2, and after a rollback a1 once more, by plan 3."""
    drop(ledger, "b0", range(1))
    live(ledger, plan(ledger))
    drop(ledger, "b1", range(1, 2))
    live(ledger, plan(ledger))
    ledger.revisions.rollback(0, "", NOW)
    ledger.batches.retry("b0", "", NOW)
    again = plan(ledger)
    ledger.revisions.promote(again.id, train(ledger, again, sha256="a1"), NOW)


def learnt(ledger: Ledger, batches: int, each: int) -> None:
    for number in range(batches):
        drop(ledger, f"b{number}", range(number * each, (number + 1) * each))
        live(ledger, plan(ledger))


# --- replay ----------------------------------------------------------------------------------


def test_no_more_is_replayed_than_max_replay_and_of_every_batch_its_share(ledger: Ledger) -> None:
    learnt(ledger, batches=8, each=10)
    drop(ledger, "new", range(100, 103))
    made = plan(ledger, most=20)
    replayed = ledger.planning.to_replay(made)
    assert made.replays == len(replayed) == len(set(replayed)) == 20
    shares = Counter(name.partition("-")[0] for name in replayed)
    assert set(shares) == {f"b{n}" for n in range(8)}
    assert set(shares.values()) <= {2, 3}
    assert ledger.planning.to_replay(made) == replayed


def test_every_plan_replays_another_sample(ledger: Ledger) -> None:
    learnt(ledger, batches=4, each=25)
    seen: set[str] = set()
    for number in range(12):
        drop(ledger, f"new{number}", range(200 + number, 201 + number))
        made = plan(ledger, most=20)
        seen.update(name for name in ledger.planning.to_replay(made) if name.startswith("b"))
        live(ledger, made)
    assert len(seen) > 80


def test_nothing_is_replayed_where_max_replay_is_none(ledger: Ledger) -> None:
    learnt(ledger, batches=2, each=3)
    drop(ledger, "new", range(100, 103))
    made = plan(ledger, most=0)
    assert (made.replays, ledger.planning.to_replay(made)) == (0, ())
    live(ledger, made)
    lineage = ledger.revisions.target().lineage
    assert ledger.knowledge.known_count(lineage, NOW) == 9


def test_what_plans_keep_grows_with_the_facts_not_with_what_they_replay(ledger: Ledger) -> None:
    learnt(ledger, batches=10, each=4)
    live(ledger, plan(ledger, PlanKind.CONSOLIDATE))
    assert ledger.db.one("SELECT count(*) FROM plan_facts") == 40
    assert ledger.knowledge.known_count(ledger.revisions.target().lineage, NOW) == 40


def test_a_fact_superseded_since_is_neither_replayed_nor_known(ledger: Ledger) -> None:
    learnt(ledger, batches=2, each=2)
    drop(ledger, "new", range(1), answer="another")
    made = plan(ledger)
    assert ledger.planning.to_replay(made) == ("b0-1", "b1-2", "b1-3")
    live(ledger, made)
    lineage = ledger.revisions.target().lineage
    known = ledger.knowledge.known_ids(lineage, NOW)
    assert known == ("b0-1", "b1-2", "b1-3", "new-0")
    assert ledger.knowledge.known_count(lineage, NOW) == len(known)


# --- rebuilds --------------------------------------------------------------------------------


def test_a_rebuild_knows_what_it_learnt_and_not_what_it_missed(ledger: Ledger) -> None:
    learnt(ledger, batches=2, each=2)
    made = plan(ledger, PlanKind.CONSOLIDATE)
    assert made.facts == 4
    assert ledger.planning.to_learn(made) == ("b0-0", "b0-1", "b1-2", "b1-3")
    lineage = live(ledger, made, "b0-1").lineage
    assert ledger.knowledge.known_ids(lineage, NOW) == ("b0-0", "b1-2", "b1-3")
    assert ledger.knowledge.known_count(lineage, NOW) == 3
    assert ledger.knowledge.taught_by("b0-0", lineage) == made.id
    assert ledger.knowledge.taught_by("b0-1", lineage) is None
    assert [w.id for w in ledger.facts.waiting(NOW, 9)] == ["b0-1"]
    lineage = live(ledger, plan(ledger)).lineage
    assert "b0-1" in ledger.knowledge.known_ids(lineage, NOW)
    assert ledger.knowledge.known_count(lineage, NOW) == 4


def test_a_rebuild_belongs_to_the_batches_of_its_lineage(ledger: Ledger) -> None:
    learnt(ledger, batches=3, each=1)
    made = plan(ledger, PlanKind.CONSOLIDATE)
    assert ledger.plans.batches(made.id) == ("b0", "b1", "b2")
    assert ledger.plans.batches(made.id, 2) == ("b0", "b1")
    assert [head.id for head in ledger.plans.heads(batch_id="b1")] == [made.id, 2]


# --- retraction ------------------------------------------------------------------------------


def retract(ledger: Ledger, fact_id: str) -> None:
    ledger.retractions.retract(fact_id, "a person asked", NOW)


def every_handle(ledger: Ledger) -> list[str]:
    return [found.handle for found in ledger.retractions.all()]


def tainted(ledger: Ledger) -> set[str]:
    return set(ledger.retractions.tainted(every_handle(ledger)).adapters)


def test_adapters_that_started_from_one_that_learnt_it_are_tainted(ledger: Ledger) -> None:
    learnt(ledger, batches=3, each=2)
    retract(ledger, "b1-2")
    assert tainted(ledger) == {"a2", "a3"}
    assert ledger.knowledge.forbidden_count(["a1"]) == 0
    assert ledger.knowledge.forbidden_count(["a3"]) == 1


def test_what_a_sample_left_out_is_tainted_nevertheless(ledger: Ledger) -> None:
    drop(ledger, "old", range(50))
    live(ledger, plan(ledger))
    drop(ledger, "new", range(100, 101))
    made = plan(ledger, warm=False, most=1)
    (sampled,) = ledger.planning.to_replay(made)
    left_out = "old-1" if sampled == "old-0" else "old-0"
    live(ledger, made)
    retract(ledger, left_out)
    assert tainted(ledger) == {"a1", "a2"}


def test_a_warm_start_keeps_what_was_superseded_and_a_rebuild_does_not(ledger: Ledger) -> None:
    drop(ledger, "old", range(2))
    live(ledger, plan(ledger))
    drop(ledger, "new", range(1), answer="another")
    live(ledger, plan(ledger))
    live(ledger, plan(ledger, PlanKind.CONSOLIDATE))
    retract(ledger, "old-0")
    assert tainted(ledger) == {"a1", "a2"}
    assert ledger.knowledge.forbidden_count(["a3"]) == 0


def test_in_a_stack_what_was_lost_before_is_not_replayed_into_the_next(ledger: Ledger) -> None:
    drop(ledger, "old", range(2))
    live(ledger, plan(ledger))
    drop(ledger, "new", range(1), answer="another")
    live(ledger, plan(ledger, warm=False))
    retract(ledger, "old-0")
    assert tainted(ledger) == {"a1"}
    assert ledger.knowledge.forbidden_count(ledger.revisions.target().lineage) == 1


def test_a_rebuild_that_was_planned_before_the_retraction_is_tainted_and_refused(
    ledger: Ledger,
) -> None:
    learnt(ledger, batches=1, each=3)
    early = plan(ledger, PlanKind.CONSOLIDATE)
    served = train(ledger, early)
    retract(ledger, "b0-1")
    snapshot = ledger.planning.snapshot(NOW, LIMITS)
    assert snapshot.open is not None
    assert not snapshot.open.fits
    assert ledger.retractions.erasable() == ()
    with pytest.raises(Superseded, match="was retracted since"):
        ledger.revisions.promote(early.id, served, NOW)
    assert tainted(ledger) == {"a1", "a2"}
    assert served.name in ledger.retractions.tainted(every_handle(ledger)).served


def test_a_rebuild_that_was_planned_after_the_retraction_is_clean(ledger: Ledger) -> None:
    learnt(ledger, batches=2, each=3)
    retract(ledger, "b0-1")
    made = plan(ledger, PlanKind.RETRACT)
    assert "b0-1" not in ledger.planning.to_learn(made)
    lineage = live(ledger, made).lineage
    assert ledger.knowledge.forbidden_count(lineage) == 0
    assert tainted(ledger) == {"a1", "a2"}
    assert [found.id for found in ledger.retractions.erasable()] == ["b0-1"]
    drop(ledger, "new", range(100, 101))
    live(ledger, plan(ledger))
    assert tainted(ledger) == {"a1", "a2"}


def test_an_adapter_that_two_plans_published_taints_what_started_from_it(ledger: Ledger) -> None:
    republished(ledger)
    retract(ledger, "b0-0")
    assert tainted(ledger) == {"a1", "a2"}
    assert ledger.knowledge.forbidden_count(["a2"]) == 1


def test_a_rebuild_that_gives_the_same_bytes_knows_what_it_replaced(ledger: Ledger) -> None:
    learnt(ledger, batches=1, each=3)
    made = plan(ledger, PlanKind.CONSOLIDATE)
    ledger.revisions.promote(made.id, train(ledger, made, sha256="a1"), NOW)
    lineage = ledger.revisions.target().lineage
    assert lineage == ("a1",)
    assert ledger.knowledge.known_count(lineage, NOW) == 3
    assert ledger.knowledge.taught_by("b0-0", lineage) == made.id
    retract(ledger, "b0-0")
    assert ledger.knowledge.forbidden_count(lineage) == 1
    assert tainted(ledger) == {"a1"}


def test_bytes_that_a_clean_rebuild_publishes_again_are_clean(ledger: Ledger) -> None:
    learnt(ledger, batches=1, each=3)
    early = plan(ledger, PlanKind.CONSOLIDATE)
    train(ledger, early, sha256="same")
    retract(ledger, "b0-0")
    assert tainted(ledger) == {"a1", "same"}
    ledger.plans.move(early.id, PlanState.PASSED, PlanState.CANCELLED, NOW)
    made = plan(ledger, PlanKind.RETRACT)
    ledger.revisions.promote(made.id, train(ledger, made, sha256="same"), NOW)
    assert ledger.knowledge.forbidden_count(ledger.revisions.target().lineage) == 0
    assert tainted(ledger) == {"a1"}
