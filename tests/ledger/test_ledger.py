"""The ledger: admission, compare-and-swap, promotion, rollback, its chain of events."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.ledger.database import Database
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Adapter, PlanHead, Served
from policies.errors import (
    Ambiguous,
    DiskFull,
    LedgerUnusable,
    NotFound,
    RequestRefused,
    StateConflict,
    Superseded,
)
from policies.facts.supersession import FactRelation, Ruling
from policies.facts.traces import trace_of
from policies.gate.records import Outcome, Verdict
from policies.planning import Limits, MakePlan, Step
from policies.records import (
    Batch,
    BatchState,
    Fact,
    Operation,
    Plan,
    PlanKind,
    PlanState,
    Priority,
    Quarantined,
    Revision,
)
from tests.support.admitting import admit

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LIMITS = Limits(rank=4, rank_budget=16, max_rank=64, max_facts=10, attempts=3)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.db") as opened:
        opened.revisions.ensure_base("base", NOW)
        yield opened


def fact(n: int, answer: str | None = None, **fields: Any) -> Fact:
    return Fact(
        id=fields.pop("id", f"f{n}-{answer or 'a'}"),
        prompt=f"What is {n}?",
        answer=answer or f"it is {n}",
        **fields,
    )


def batch(name: str, **fields: Any) -> Batch:
    return Batch(
        id=fields.pop("id", f"{name}-0123"),
        name=name,
        received_at=NOW,
        source="inbox",
        accepted=0,
        quarantined=0,
    )


def drop(ledger: Ledger, name: str, numbers: range | list[int], **fields: Any) -> str:
    given_batch = batch(name)
    admit(ledger, given_batch, [fact(n, **fields) for n in numbers])
    return given_batch.id


def make(
    ledger: Ledger, now: datetime = NOW, replaces: tuple[str, ...] = (), max_replay: int = 100
) -> PlanHead:
    """The plan that learns everything that waits."""
    waiting = ledger.facts.waiting(now, 1000)
    action = MakePlan(
        kind=PlanKind.LEARN,
        rank=4,
        seed=0,
        because="waits",
        fact_ids=tuple(w.id for w in waiting),
        replaces=replaces,
    )
    return ledger.planning.make_plan(action, now, max_replay=max_replay)


def served(plan: PlanHead | Plan) -> Served:
    return Served(name=f"palora-{plan.id:06}", sha256=f"s{plan.id}")


def verdict(*not_learnt: str, outcome: Outcome = Outcome.PASS) -> Verdict:
    return Verdict(
        outcome=outcome, rule="a rule", reasons=("a reason",), suites=(), not_learnt=not_learnt
    )


def passed(ledger: Ledger, plan: PlanHead, *not_learnt: str) -> Plan:
    adapter = Adapter(sha256=f"a{plan.id}", rank=plan.rank)
    ledger.steps.trained(plan.id, adapter, served(plan), NOW)
    return ledger.steps.judged(plan.id, verdict(*not_learnt), (), PlanState.PASSED, NOW)


def live(
    ledger: Ledger, *not_learnt: str, relearn: int = 2, replaces: tuple[str, ...] = ()
) -> Revision:
    plan = make(ledger, replaces=replaces)
    passed(ledger, plan, *not_learnt)
    return ledger.revisions.promote(plan.id, served(plan), NOW, relearn=relearn)


# --- admission -------------------------------------------------------------------------------


def test_the_same_bytes_again_change_nothing(ledger: Ledger) -> None:
    first = admit(ledger, batch("a"), [fact(1), fact(2)])
    events = ledger.events.latest()
    again = admit(ledger, batch("a"), [fact(1), fact(2)])
    assert (first.already, again.already) == (False, True)
    assert first.batch == again.batch
    assert first.batch.accepted == 2
    assert ledger.events.latest() == events


def test_the_same_fact_in_another_file_is_one_fact(ledger: Ledger) -> None:
    drop(ledger, "a", range(3))
    second = admit(ledger, batch("b"), [fact(2), fact(3)])
    assert (second.batch.accepted, second.known) == (2, 1)
    assert [w.id for w in ledger.facts.waiting(NOW, 99)] == ["f0-a", "f1-a", "f2-a", "f3-a"]


def test_a_later_answer_takes_the_place_of_an_earlier_one(ledger: Ledger) -> None:
    drop(ledger, "a", [1])
    drop(ledger, "b", [1], answer="another")
    assert [w.id for w in ledger.facts.waiting(NOW, 99)] == ["f1-another"]
    assert ledger.facts.state("f1-a")["validity"] == "superseded"
    assert ledger.facts.state("f1-a")["replaced_by"] == "f1-another"


def test_two_answers_in_one_file_leave_the_last_one_valid(ledger: Ledger) -> None:
    admit(ledger, batch("a"), [fact(1, "one"), fact(1, "two"), fact(1, "three")])
    assert [w.id for w in ledger.facts.waiting(NOW, 99)] == ["f1-three"]


def test_a_retract_line_takes_a_fact_back(ledger: Ledger) -> None:
    drop(ledger, "a", [1, 2])
    gone = Fact(id="r", prompt="What is 1?", answer="", op=Operation.RETRACT)
    by_id = Fact(id="f2-a", prompt="", answer="", op=Operation.RETRACT)
    admit(ledger, batch("b"), [gone, by_id])
    assert ledger.facts.waiting(NOW, 99) == ()
    assert ledger.batches.state("b-0123") is BatchState.EMPTY


def test_quarantined_lines_are_kept_in_their_order(ledger: Ledger) -> None:
    bad = [Quarantined(line=n, kind="not-json", reason="is not JSON") for n in (2, 5)]
    admit(ledger, batch("a"), [fact(1)], bad)
    assert ledger.quarantine.lines("a-0123") == tuple(bad)
    assert ledger.batches.totals() == {"batches": 1, "accepted": 1, "known": 0, "quarantined": 2}


def test_urgent_facts_come_first_and_future_or_past_ones_not_at_all(ledger: Ledger) -> None:
    later, earlier = NOW + timedelta(days=1), NOW - timedelta(days=1)
    facts = [
        fact(1),
        fact(2, priority=Priority.URGENT),
        fact(3, valid_from=later),
        fact(4, valid_until=earlier),
        fact(5, valid_from=earlier.date()),
    ]
    admit(ledger, batch("a"), facts)
    assert [w.id for w in ledger.facts.waiting(NOW, 99)] == ["f2-a", "f1-a", "f5-a"]
    assert [w.id for w in ledger.facts.waiting(NOW, 2)] == ["f2-a", "f1-a"]
    assert "f3-a" in [w.id for w in ledger.facts.waiting(later, 99)]


def test_a_large_file_arrives_in_chunks_and_waits_until_it_is_whole(ledger: Ledger) -> None:
    large = batch("large")
    assert ledger.admission.begin_batch(large, signature="1:2").line == 0
    chunk = [(fact(n), Ruling(relation=FactRelation.NEW)) for n in range(5)]
    for _ in range(2):
        ledger.admission.append_facts(large.id, chunk, [], NOW, line=6, position=600)
    assert ledger.facts.waiting(NOW, 99) == ()
    assert not ledger.batches.is_complete(large.id)
    (arriving,) = ledger.admission.admitting()
    assert (arriving.line, arriving.position, arriving.signature) == (6, 600, "1:2")
    assert ledger.admission.finish_batch(large.id, NOW).batch.accepted == 5
    assert len(ledger.facts.waiting(NOW, 99)) == 5
    assert ledger.admission.finish_batch(large.id, NOW).already


def test_a_batch_is_found_by_id_beginning_and_name(ledger: Ledger) -> None:
    drop(ledger, "one.jsonl", [1])
    drop(ledger, "other.jsonl", [2])
    assert ledger.batches.get("one.jsonl").id == "one.jsonl-0123"
    assert ledger.batches.get("one").id == "one.jsonl-0123"
    with pytest.raises(Ambiguous):
        ledger.batches.get("o")
    with pytest.raises(NotFound, match="no batch two"):
        ledger.batches.get("two")


def test_a_feeds_cursor_moves_with_its_content_or_not_at_all(ledger: Ledger) -> None:
    arriving = batch("feed").model_copy(update={"source": "feed:news"})
    ledger.admission.begin_batch(arriving, cursor="7")
    assert ledger.admission.arriving(arriving.id).cursor == "7"
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(ValueError, match="time zone"):
        ledger.admission.finish_batch(arriving.id, naive)
    assert ledger.batches.latest() == ()
    assert ledger.feeds.cursor("news") is None
    admit(ledger, arriving, [fact(1)])
    assert ledger.feeds.cursor("news") == "7"


def test_facts_are_found_by_their_words(ledger: Ledger) -> None:
    drop(ledger, "a", range(5))
    assert ledger.text.index() == 5
    assert ledger.text.index() == 0
    assert ledger.text.search("what is 3?")[0].id == "f3-a"
    assert ledger.text.search('"" OR !')[:0] == ()


def test_counts_are_those_of_now_whoever_changed_it_and_what_was_undone(ledger: Ledger) -> None:
    with Ledger.open(ledger.db.path, readonly=True) as reader:
        for number, name in enumerate(("a", "b", "c")):
            drop(ledger, name, [10 * number, 10 * number + 1])
            expected = 2 * (number + 1)
            assert ledger.batches.totals()["accepted"] == expected
            assert reader.batches.totals()["accepted"] == expected
        with pytest.raises(RuntimeError), ledger.db.write("a change"):
            ledger.db.do("UPDATE batches SET accepted = 99")
            assert ledger.batches.totals()["accepted"] == 3 * 99
            raise RuntimeError
        assert ledger.batches.totals()["accepted"] == 6
        assert ledger.listings.learnt() == 0


# --- plans -----------------------------------------------------------------------------------


def test_a_fact_waits_for_one_plan_only(ledger: Ledger) -> None:
    drop(ledger, "a", [1, 2])
    plan = make(ledger)
    assert ledger.planning.to_learn(plan) == ("f1-a", "f2-a")
    assert ledger.plans.batches(plan.id) == ("a-0123",)
    with pytest.raises(StateConflict):
        ledger.plans.create(
            PlanKind.LEARN, parent=0, fact_ids=["f1-a"], rank=4, seed=0, because="", now=NOW
        )
    assert len(ledger.plans.all()) == 1


def test_a_move_from_another_state_is_refused_and_changes_nothing(ledger: Ledger) -> None:
    drop(ledger, "a", [1])
    plan = make(ledger)
    ledger.plans.move(plan.id, PlanState.PLANNED, PlanState.CANCELLED, NOW)
    for to in (PlanState.FAILED, PlanState.CANCELLED):
        with pytest.raises(StateConflict, match="is cancelled, not planned"):
            ledger.plans.move(plan.id, PlanState.PLANNED, to, NOW)
    with pytest.raises(StateConflict, match="no way from planned to live"):
        ledger.plans.move(plan.id, PlanState.PLANNED, PlanState.LIVE, NOW)
    assert [w.id for w in ledger.facts.waiting(NOW, 9)] == ["f1-a"]


def test_promotion_is_refused_when_the_lineage_has_changed(ledger: Ledger) -> None:
    drop(ledger, "a", [1])
    one = make(ledger)
    drop(ledger, "b", [2])
    two = make(ledger)
    for plan in (one, two):
        passed(ledger, plan)
    assert ledger.revisions.promote(one.id, served(one), NOW).number == 1
    with pytest.raises(Superseded):
        ledger.revisions.promote(two.id, served(two), NOW)
    assert ledger.plans.get(two.id).state is PlanState.PASSED
    assert ledger.revisions.target().number == 1


def test_promotion_twice_is_one_revision(ledger: Ledger) -> None:
    drop(ledger, "a", [1])
    first = live(ledger)
    plan = ledger.plans.get(1)
    assert ledger.revisions.promote(plan.id, served(plan), NOW) == first
    assert [r.number for r in ledger.revisions.all()] == [0, 1]


def test_facts_not_learnt_wait_again_and_then_no_more(ledger: Ledger) -> None:
    drop(ledger, "a", [1, 2, 3])
    live(ledger, "f2-a", relearn=1)
    assert ledger.batches.state("a-0123") is BatchState.LIVE
    (again,) = ledger.facts.waiting(NOW, 9)
    assert (again.id, again.tries) == ("f2-a", 1)
    live(ledger, "f2-a", relearn=1)
    assert ledger.facts.waiting(NOW, 9) == ()
    assert ledger.facts.counts("a-0123").unlearnt == 1
    assert ledger.batches.retry("a-0123", "", NOW) == 1
    assert [w.id for w in ledger.facts.waiting(NOW, 9)] == ["f2-a"]


def test_a_batch_whose_facts_are_not_valid_yet_says_until_when_it_waits(ledger: Ledger) -> None:
    later = NOW + timedelta(days=30)
    drop(ledger, "a", [1], valid_from=later)
    assert ledger.facts.not_before("a-0123", NOW) == later
    assert ledger.facts.waiting(NOW, 9) == ()
    assert ledger.facts.not_before("a-0123", later) is None
    drop(ledger, "b", [2])
    assert ledger.facts.not_before("b-0123", NOW) is None


def test_what_is_replaced_from_a_later_day_on_stays_valid_until_then(ledger: Ledger) -> None:
    later = NOW + timedelta(days=30)
    drop(ledger, "a", [1, 2])
    live(ledger)
    drop(ledger, "b", [1], answer="new", valid_from=later, op=Operation.SUPERSEDE)
    lineage = ledger.revisions.target().lineage
    assert ledger.knowledge.known_ids(lineage, NOW, 9) == ("f1-a", "f2-a")
    assert ledger.facts.waiting(NOW, 9) == ()
    assert ledger.knowledge.known_ids(lineage, later, 9) == ("f2-a",)
    assert [w.id for w in ledger.facts.waiting(later, 9)] == ["f1-new"]
    assert ledger.facts.state("f1-a")["replaced_by"] == "f1-new"


def test_an_old_answer_is_looked_for_once_the_new_one_is_learnt(ledger: Ledger) -> None:
    drop(ledger, "a", [1, 2])
    live(ledger)
    lineage = ledger.revisions.target().lineage
    drop(ledger, "b", [1], answer="new")
    drop(ledger, "c", [3])
    assert ledger.knowledge.superseded_ids(lineage, 99, NOW, 9) == ()
    plan = make(ledger)
    assert ledger.knowledge.superseded_ids(lineage, plan.id, NOW, 9) == (("f1-a", "f1-new"),)


def test_an_adapter_that_goes_on_keeps_a_trace_of_what_was_superseded(ledger: Ledger) -> None:
    drop(ledger, "a", [1, 2])
    live(ledger)
    former = ledger.revisions.target().lineage
    drop(ledger, "b", [1], answer="new")
    live(ledger, replaces=former)
    lineage = ledger.revisions.target().lineage
    assert len(lineage) == 1
    assert lineage != former
    assert set(ledger.knowledge.known_ids(lineage, NOW, 9)) == {"f1-new", "f2-a"}
    assert ledger.knowledge.superseded_ids(lineage, 99, NOW, 9) == (("f1-a", "f1-new"),)
    assert ledger.knowledge.forbidden_count(lineage) == 0
    assert ledger.retractions.retract("f1-a", "a person asked", NOW)
    assert ledger.knowledge.forbidden_count(lineage) == 1


def test_what_is_replayed_is_known_valid_and_bounded(ledger: Ledger) -> None:
    drop(ledger, "a", range(10))
    live(ledger)
    drop(ledger, "b", [0], answer="other")
    lineage = ledger.revisions.target().lineage
    assert ledger.knowledge.known_count(lineage, NOW) == 9
    known = ledger.knowledge.known_ids(lineage, NOW)
    assert known == tuple(f"f{n}-a" for n in range(1, 10))
    assert len(ledger.knowledge.known_ids(lineage, NOW, 4)) == 4
    plan = make(ledger)
    assert plan.replays == 9
    assert ledger.planning.to_replay(plan) == known


def test_a_rejected_plan_of_several_batches_is_tried_batch_by_batch(ledger: Ledger) -> None:
    drop(ledger, "a", [1])
    drop(ledger, "b", [2])
    plan = make(ledger)
    adapter = Adapter(sha256="x", rank=4)
    ledger.steps.trained(plan.id, adapter, served(plan), NOW)
    failing = verdict(outcome=Outcome.FAIL)
    ledger.steps.judged(plan.id, failing, (), PlanState.REJECTED, NOW)
    assert [(w.alone, w.tries) for w in ledger.facts.waiting(NOW, 9)] == [(True, 1), (True, 1)]
    assert ledger.steps.verdict(plan.id) == failing


def test_a_rejected_batch_stays_rejected_until_it_is_retried(ledger: Ledger) -> None:
    name = drop(ledger, "a", [1])
    plan = make(ledger)
    assert ledger.batches.state(name) is BatchState.LEARNING
    ledger.steps.trained(plan.id, Adapter(sha256="x", rank=4), served(plan), NOW)
    ledger.steps.judged(plan.id, verdict(outcome=Outcome.FAIL), (), PlanState.REJECTED, NOW)
    assert ledger.batches.state(name) is BatchState.REJECTED
    ledger.batches.retry(name, "", NOW)
    assert ledger.batches.state(name) is BatchState.WAITING
    with pytest.raises(NotFound):
        ledger.batches.get("nothing")


def test_only_what_is_not_live_can_be_retried(ledger: Ledger) -> None:
    name = drop(ledger, "a", [1])
    live(ledger)
    with pytest.raises(RequestRefused, match="is live: there is nothing to retry"):
        ledger.batches.retry(name, "", NOW)


def test_a_failed_plan_is_planned_again_by_retry(ledger: Ledger) -> None:
    name = drop(ledger, "a", [1])
    plan = make(ledger)
    ledger.steps.failed(plan.id, Step.TRAIN, "out of memory", "ChildDied", NOW, NOW)
    assert ledger.plans.get(plan.id).attempts == 1
    ledger.plans.move(plan.id, PlanState.PLANNED, PlanState.FAILED, NOW)
    assert ledger.batches.state(name) is BatchState.FAILED
    ledger.batches.retry(name, "", NOW)
    assert ledger.plans.get(plan.id).state is PlanState.PLANNED
    assert ledger.plans.get(plan.id).attempts == 0


def test_leases_come_and_go(ledger: Ledger) -> None:
    drop(ledger, "a", [1])
    plan = make(ledger)
    ledger.steps.lease(plan.id, Step.TRAIN, 42, "7", NOW, NOW)
    assert ledger.planning.snapshot(NOW, LIMITS).open is not None
    assert ledger.steps.leases()[0].pid == 42
    for _ in range(2):
        ledger.steps.interrupted(plan.id, Step.TRAIN, NOW)
    assert ledger.plans.head(plan.id).interruptions == 1
    assert ledger.steps.leases() == ()


# --- rollback --------------------------------------------------------------------------------


def test_rollback_marks_plans_rolled_back_and_forward_live(ledger: Ledger) -> None:
    for n in range(3):
        drop(ledger, f"b{n}", [n])
        live(ledger)
    ledger.revisions.rollback(1, "wrong", NOW)
    assert ledger.revisions.target().number == 1
    assert [ledger.batches.state(f"b{n}-0123") for n in range(3)] == [
        BatchState.LIVE,
        BatchState.ROLLED_BACK,
        BatchState.ROLLED_BACK,
    ]
    assert ledger.revisions.forward_target() == 2
    ledger.revisions.rollback(3, "right after all", NOW)
    assert {ledger.plans.get(n).state for n in (1, 2, 3)} == {PlanState.LIVE}
    with pytest.raises(RequestRefused):
        ledger.revisions.forward_target()


def test_a_plan_on_a_rolled_back_revision_fits_no_more(ledger: Ledger) -> None:
    drop(ledger, "a", [1])
    live(ledger)
    drop(ledger, "b", [2])
    plan = make(ledger)
    ledger.revisions.rollback(0, "", NOW)
    snapshot = ledger.planning.snapshot(NOW, LIMITS)
    assert snapshot.open is not None
    assert not snapshot.open.fits
    passed(ledger, plan)
    with pytest.raises(Superseded):
        ledger.revisions.promote(plan.id, served(plan), NOW)


def test_a_rolled_back_batch_can_be_learnt_again(ledger: Ledger) -> None:
    name = drop(ledger, "a", [1])
    live(ledger)
    ledger.revisions.rollback(0, "", NOW)
    assert ledger.facts.waiting(NOW, 9) == ()
    assert ledger.batches.retry(name, "", NOW) == 1
    assert live(ledger).lineage == ("a2",)


def test_no_revision_that_knows_a_retracted_fact_is_served_again(ledger: Ledger) -> None:
    drop(ledger, "a", [1])
    live(ledger)
    ledger.revisions.rollback(0, "", NOW)
    assert ledger.retractions.retract("f1-a", "asked to", NOW)
    assert not ledger.retractions.retract("f1-a", "asked to", NOW)
    with pytest.raises(RequestRefused, match="knows 1 retracted fact;"):
        ledger.revisions.rollback(1, "", NOW)
    assert ledger.revisions.target().number == 0


def test_a_retracted_fact_is_forbidden_where_it_was_replayed_too(ledger: Ledger) -> None:
    drop(ledger, "a", [1])
    live(ledger)
    drop(ledger, "b", [2])
    live(ledger)
    ledger.retractions.retract("f1-a", "", NOW)
    assert ledger.knowledge.forbidden_count(("a2",)) == 1
    snapshot = ledger.planning.snapshot(NOW, LIMITS)
    assert (snapshot.forbidden, snapshot.known) == (1, 1)


# --- events ----------------------------------------------------------------------------------


def test_events_cannot_be_changed_and_a_change_is_found(ledger: Ledger, tmp_path: Path) -> None:
    for n in range(3):
        ledger.events.record("test", "subject", {"n": n}, NOW)
    count = ledger.events.verify_chain()
    raw = sqlite3.connect(tmp_path / "ledger.db")
    for sql in ("UPDATE events SET kind = 'x'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(sql)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        raw.execute("UPDATE events SET payload = '{}'")
    raw.execute("DROP TRIGGER events_say")
    raw.execute("UPDATE events SET payload = '{}' WHERE seq = ?", (count - 1,))
    raw.commit()
    raw.close()
    with pytest.raises(LedgerUnusable, match=f"event {count - 1} is not what was written"):
        ledger.events.verify_chain()


def test_what_an_event_said_can_be_erased_and_the_chain_still_holds(
    ledger: Ledger, tmp_path: Path
) -> None:
    trace = trace_of("r-1", fact(1, "a secret answer"))
    for said in ("nothing", "What is 1? a secret answer", "nothing"):
        ledger.events.record("test", "subject", {"said": said}, NOW)
    count = ledger.events.verify_chain()
    list(ledger.erasure.erase_mentions([trace], NOW))
    assert ledger.events.verify_chain() == count + 1
    named, _, erased, _ = ledger.events.latest(4)
    assert erased.payload == {"erased": True}
    assert (named.kind, named.payload["events"]) == ("events.erased", [erased.seq])
    assert "secret" not in str(ledger.events.latest())


def test_an_event_that_is_erased_without_a_retraction_is_found(
    ledger: Ledger, tmp_path: Path
) -> None:
    for n in range(3):
        ledger.events.record("test", "subject", {"n": n}, NOW)
    raw = sqlite3.connect(tmp_path / "ledger.db")
    raw.execute("UPDATE events SET payload = '', salt = '' WHERE seq = 2")
    raw.commit()
    raw.close()
    with pytest.raises(LedgerUnusable, match=r"what event 2 .* is gone without a retraction"):
        ledger.events.verify_chain()


def test_a_plan_that_knows_a_fact_retracted_since_is_never_promoted(ledger: Ledger) -> None:
    drop(ledger, "a", [1])
    plan = make(ledger)
    passed(ledger, plan)
    ledger.retractions.retract("f1-a", "", NOW)
    with pytest.raises(Superseded, match="was retracted since"):
        ledger.revisions.promote(plan.id, served(plan), NOW)
    assert ledger.revisions.target().number == 0


def test_events_hold_no_text_of_facts(ledger: Ledger) -> None:
    drop(ledger, "a", [1], answer="a secret answer")
    live(ledger)
    ledger.retractions.retract("f1-a secret answer", "", NOW)
    said = " ".join(str(event.payload) for event in ledger.events.latest())
    assert "What is" not in said
    assert "secret" not in said


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["fit", "unfit", "live", "back", "forward"]), max_size=12))
def test_only_what_builds_on_the_target_lineage_is_ever_promoted(steps: list[str]) -> None:
    with _fresh() as ledger:
        for number, step in enumerate(steps):
            target = ledger.revisions.target()
            if step in ("fit", "live", "unfit"):
                drop(ledger, f"b{number}", [number])
                plan = make(ledger)
                passed(ledger, plan)
                if step == "unfit" and target.number:
                    ledger.revisions.rollback(0, "", NOW)
                    with pytest.raises(Superseded):
                        ledger.revisions.promote(plan.id, served(plan), NOW)
                    ledger.plans.move(plan.id, PlanState.PASSED, PlanState.CANCELLED, NOW)
                else:
                    revision = ledger.revisions.promote(plan.id, served(plan), NOW)
                    assert revision.lineage == (*target.lineage, f"a{plan.id}")
                    assert revision.parent == target.number
            elif step == "back" and target.parent is not None:
                ledger.revisions.rollback(target.parent, "", NOW)
            elif step == "forward":
                ledger.revisions.rollback(max(r.number for r in ledger.revisions.all()), "", NOW)
        ledger.events.verify_chain()


def _fresh() -> Ledger:
    ledger = Ledger(Database.in_memory(Path(":memory:")))
    ledger.revisions.ensure_base("base", NOW)
    return ledger


# --- opening ---------------------------------------------------------------------------------


def test_readers_see_what_was_written_and_cannot_write(ledger: Ledger, tmp_path: Path) -> None:
    drop(ledger, "a", [1])
    with Ledger.open(tmp_path / "ledger.db", readonly=True) as reader:
        assert reader.batches.latest() == ledger.batches.latest()
        with pytest.raises(LedgerUnusable, match="readonly"):
            reader.events.record("x", "y", {}, NOW)


def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnusable, match="there is no ledger yet"):
        Ledger.open(tmp_path / "none.db", readonly=True)
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database at all" * 100)
    with pytest.raises(LedgerUnusable, match="not a database"):
        Ledger.open(broken)


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (["first", "retractions", "paraphrases"], r"an older schema \(paraphrases\)"),
        (["schema_1", "schema_2"], r"a newer schema \(schema_2\)"),
        (["schema_7"], r"a newer schema \(schema_7\)"),
        ([], "another program's tables"),
    ],
)
def test_a_ledger_of_another_schema_is_refused_and_left_as_it_is(
    tmp_path: Path, made: list[str], said: str, readonly: bool
) -> None:
    path = tmp_path / "ledger.db"
    other = sqlite_utils.Migrations("palorad")
    for name in made:
        other(name=name)(lambda db: None)
    db = sqlite_utils.Database(path)
    db.execute("CREATE TABLE batches (seq INTEGER PRIMARY KEY)")
    if made:
        other.apply(db)
    db.close()
    before = path.read_bytes()
    with pytest.raises(
        LedgerUnusable, match=rf"a ledger of {said}.*: move the file away"
    ) as refused:
        Ledger.open(path, readonly=readonly)
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == before


def test_a_ledger_is_opened_again_as_it_was(tmp_path: Path) -> None:
    for _ in range(2):
        with Ledger.open(tmp_path / "ledger.db") as ledger:
            ledger.revisions.ensure_base("base", NOW)
    with Ledger.open(tmp_path / "ledger.db", readonly=True) as reader:
        assert reader.revisions.target().number == 0


def test_a_full_disk_is_its_own_error_and_leaves_nothing_half_done(ledger: Ledger) -> None:
    connection = ledger.db.connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    many = [fact(n, "x" * 1000) for n in range(200)]
    with pytest.raises(DiskFull, match="free some space; work resumes by itself"):
        admit(ledger, batch("a"), many)
    assert ledger.batches.latest() == ()
    connection.execute("PRAGMA max_page_count = 1000000")
    assert admit(ledger, batch("a"), many).batch.accepted == 200
    ledger.events.verify_chain()


def test_a_hundred_thousand_facts_leave_the_daily_questions_quick(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db") as ledger:
        ledger.revisions.ensure_base("base", NOW)
        new = Ruling(relation=FactRelation.NEW)
        ledger.admission.begin_batch(batch("large"))
        for start in range(0, 100_000, 2000):
            chunk = [(fact(n), new) for n in range(start, start + 2000)]
            ledger.admission.append_facts("large-0123", chunk, [], NOW, line=start + 2000)
        ledger.admission.finish_batch("large-0123", NOW)
        before = time.thread_time()
        for _ in range(10):
            ledger.planning.snapshot(NOW, LIMITS)
            ledger.batches.state("large-0123")
        assert (time.thread_time() - before) / 10 < 0.05


@pytest.mark.parametrize("number", [99, -1, 2**63, 10**30])
def test_a_number_that_nothing_has_is_not_found_however_large(ledger: Ledger, number: int) -> None:
    for find in (ledger.revisions.get, ledger.plans.get, ledger.plans.head):
        with pytest.raises(NotFound, match=str(number)):
            find(number)
