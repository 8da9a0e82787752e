"""What every look of an idle daemon asks costs the same, however long its history is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Adapter, Served
from policies.gate.records import Outcome, Verdict
from policies.planning import Limits
from policies.records import Batch, Fact, PlanKind, PlanState
from tests.support.admitting import admit

NOW = datetime(2026, 11, 1, tzinfo=UTC)
PASSED = Verdict(outcome=Outcome.PASS, rule="", reasons=(), suites=())
LIMITS = Limits(rank=4, rank_budget=16, max_rank=16, max_facts=10, attempts=3, retrain_at=100)
SHORT = ("leases", "retractions", "target", "json_each", "CONSTANT ROW")
NEWEST = "ORDER BY seq DESC LIMIT 1"
UNFINISHED = ("batches USING INDEX batches_arriving", "r USING INDEX retractions_open")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger.open(tmp_path / "ledger.db")
    made.revisions.ensure_base("base", NOW)
    for number in range(1, 9):
        learn(made, number)
    made.text.index()
    yield made
    made.close()


def learn(ledger: Ledger, number: int, **validity: datetime) -> None:
    """A batch of one fact, and the plan by which it went live."""
    batch = Batch(
        id=f"b{number}",
        name=f"f{number}.jsonl",
        received_at=NOW,
        source="inbox",
        accepted=0,
        quarantined=0,
    )
    fact = Fact(id=f"f{number}", prompt=f"What is {number}?", answer="x", **validity)
    admit(ledger, batch, [fact])
    target = ledger.revisions.target()
    plan = ledger.plans.create(
        PlanKind.LEARN,
        parent=target.number,
        replaces=target.lineage,
        fact_ids=[f"f{number}"],
        rank=4,
        seed=0,
        because="a test",
        now=NOW,
    ).id
    served = Served(name=f"palora-{number:06}-{number:08}", sha256=f"{number:064}")
    ledger.steps.trained(plan, Adapter(sha256=f"{number:064}", rank=4), served, NOW)
    ledger.steps.judged(plan, PASSED, (), PlanState.PASSED, NOW)
    ledger.revisions.promote(plan, served, NOW)


def look(ledger: Ledger) -> None:
    """All that a tick asks the ledger when there is nothing to do."""
    ledger.steps.leases()
    ledger.planning.snapshot(NOW, LIMITS)
    ledger.admission.admitting()
    ledger.admission.admitting(aside=True)
    ledger.retractions.erasable()
    ledger.text.index()
    ledger.events.head()


def test_a_look_without_anything_new_reads_through_no_table(ledger: Ledger) -> None:
    look(ledger)
    asked: list[str] = []
    ledger.db.connection.set_trace_callback(asked.append)
    look(ledger)
    ledger.db.connection.set_trace_callback(None)
    assert len(asked) > 8
    assert not [sql for sql in asked if "sum(facts)" in sql], "it grows with the plans"
    for sql in asked:
        if sql.startswith("PRAGMA") or sql.endswith(NEWEST):
            continue
        for *_, step in ledger.db.rows(f"EXPLAIN QUERY PLAN {sql}"):
            short = any(f"SCAN {table}" in step for table in (*SHORT, *UNFINISHED))
            assert short or "SCAN" not in step, f"{step}: {sql}"


def wait_for_more(ledger: Ledger, **validity: datetime) -> None:
    """One fact that was learnt, with these dates, and one that waits for others to be learnt."""
    learn(ledger, 9, **validity)
    facts = [Fact(id="waits", prompt="What waits?", answer="x")]
    batch = Batch(id="b10", name="f10", received_at=NOW, source="inbox", accepted=0, quarantined=0)
    admit(ledger, batch, facts)


def counts(asked: list[str]) -> list[str]:
    return [sql for sql in asked if "plan_facts" in sql]


def test_a_look_while_facts_gather_does_not_count_what_is_known_again(ledger: Ledger) -> None:
    wait_for_more(ledger)
    asked: list[str] = []
    before = ledger.planning.snapshot(NOW, LIMITS)
    ledger.db.connection.set_trace_callback(asked.append)
    for second in range(1, 4):
        now = NOW + timedelta(seconds=second)
        assert ledger.planning.snapshot(now, LIMITS) == before
    ledger.db.connection.set_trace_callback(None)
    assert len(before.waiting) == 1
    assert before.known == 9
    assert asked
    assert not counts(asked)


@pytest.mark.parametrize("date", ["valid_from", "valid_until"])
def test_a_fact_that_begins_or_ends_to_be_valid_is_counted_then(ledger: Ledger, date: str) -> None:
    day = timedelta(days=1)
    wait_for_more(ledger, **{date: NOW + day})
    valid_first = date == "valid_until"

    def known(days: int) -> int:
        return ledger.planning.snapshot(NOW + days * day, LIMITS).known

    assert known(0) == 8 + valid_first
    assert known(1) == 8 + (not valid_first)
    assert known(0) == 8 + valid_first, "a clock that was set back"


def test_what_was_counted_once_is_counted_again_after_a_change(ledger: Ledger) -> None:
    before = ledger.planning.snapshot(NOW, LIMITS)
    learn(ledger, 9)
    after = ledger.planning.snapshot(NOW, LIMITS)
    assert (after.scratch_facts, after.added_facts) == (
        before.scratch_facts,
        before.added_facts + 1,
    )
