"""What may be removed: whatever the history, never what something may still need."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.records import OPEN_STATES, BatchState, PlanState
from policies.retention import (
    Holdings,
    KeepLimits,
    KnownBatch,
    KnownPlan,
    KnownRevision,
    Removal,
    StoredItem,
    StoredKind,
    removable,
    within_reach,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
ENDED = (PlanState.REJECTED, PlanState.CANCELLED, PlanState.FAILED)
SHORTEST = KeepLimits(
    revisions=1, rejected_days=1, archive_days=1, answers_days=1, work_days=1, receipts_days=1
)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def sha(number: int) -> str:
    return f"{number:064x}"[::-1]


def revision(number: int, parent: int | None, *adapters: int) -> KnownRevision:
    return KnownRevision(
        number=number,
        parent=parent,
        name=f"palora-{number:06}" if number else "base",
        lineage=tuple(map(sha, adapters)),
        sha256=sha(1000 + number) if number else None,
    )


def plan(number: int, state: PlanState, **fields: Any) -> KnownPlan:
    published = {"adapter": sha(number), "served": f"c{number}", "sha256": sha(2000 + number)}
    return KnownPlan(
        id=number, state=state, **{"parent": 0, "moved_at": ago(50), **published, **fields}
    )


def chain(length: int) -> tuple[KnownRevision, ...]:
    """Revisions by warm start: each replaces the adapter of the one before."""
    first = [revision(0, None)]
    return (*first, *(revision(n, n - 1, n) for n in range(1, length + 1)))


def all_items(standing: Holdings, days: float) -> list[StoredItem]:
    """All that could lie on the disk, of this age."""
    changed = ago(days)
    names: set[tuple[StoredKind, str]] = set()
    for known in standing.revisions:
        names |= {(StoredKind.ADAPTER, one[:12]) for one in known.lineage}
        if known.sha256:
            names |= {(StoredKind.REVISION, known.name), (StoredKind.ANSWERS, known.sha256[:12])}
    for made in standing.plans:
        names |= {(StoredKind.WORK, f"{made.id}-train")}
        if made.adapter and made.served and made.sha256:
            names |= {(StoredKind.ADAPTER, made.adapter[:12]), (StoredKind.REVISION, made.served)}
            names |= {(StoredKind.ANSWERS, made.sha256[:12])}
    for batch in standing.batches:
        names |= {
            (StoredKind.ARCHIVE, batch.id),
            (StoredKind.RECEIPT, f"{batch.name}.accepted.json"),
        }
    return [StoredItem(kind=kind, name=name, changed_at=changed) for kind, name in sorted(names)]


def gone(found: tuple[Removal, ...], kind: StoredKind) -> set[str]:
    return {one.name for one in found if one.kind is kind}


# --- histories ---------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> Holdings:
    """Plans that went live, were turned down or are under way, rollbacks between them."""
    revisions, plans, target = [revision(0, None)], [], 0
    for number in range(1, draw(st.integers(1, 14)) + 1):
        stack = draw(st.booleans())
        below = revisions[target].lineage
        state = draw(st.sampled_from(list(PlanState)))
        made = plan(
            number,
            state,
            parent=target,
            moved_at=ago(draw(st.integers(0, 100))),
        )
        plans.append(made)
        if state in (PlanState.LIVE, PlanState.ROLLED_BACK):
            kept = below if stack else ()
            live = KnownRevision(
                number=len(revisions),
                parent=target,
                name=made.served or "",
                lineage=(*kept, made.adapter or ""),
                sha256=made.sha256,
            )
            revisions.append(live)
            target = live.number
        if draw(st.integers(0, 3)) == 0:
            target = draw(st.integers(0, len(revisions) - 1))
    names = st.sampled_from([known.name for known in revisions])
    candidates = [name for made in plans for name in (made.adapter, made.served) if name]
    return Holdings(
        now=NOW,
        target=target,
        base=sha(5),
        revisions=tuple(revisions),
        plans=tuple(plans),
        batches=tuple(
            KnownBatch(
                id=f"b{n}",
                name=f"drop-{n}.jsonl",
                received_at=ago(90),
                state=draw(st.sampled_from(list(BatchState))),
                quarantined=draw(st.integers(0, 1)),
            )
            for n in range(draw(st.integers(0, 4)))
        ),
        running=draw(st.frozensets(st.integers(1, len(plans)), max_size=1)),
        serving=draw(st.frozensets(names, max_size=2)),
        tainted=draw(st.frozensets(st.sampled_from(candidates), max_size=2)),
    )


limits = st.builds(
    KeepLimits,
    revisions=st.integers(1, 4),
    rejected_days=st.integers(0, 60),
    archive_days=st.integers(0, 60),
    answers_days=st.integers(0, 60),
    work_days=st.integers(0, 60),
    receipts_days=st.integers(0, 60),
)


@given(standing=histories(), chosen=limits, days=st.integers(0, 200))
def test_what_can_be_served_again_keeps_its_files(
    standing: Holdings, chosen: KeepLimits, days: int
) -> None:
    """A rollback by as many steps as are kept, and back, finds revision and adapters."""
    found = removable(standing, all_items(standing, days), chosen)
    by_number = {known.number: known for known in standing.revisions}
    reachable, number = [], standing.target
    for _ in range(chosen.revisions + 1):
        reachable.append(by_number[number])
        if by_number[number].parent is None:
            break
        number = by_number[number].parent or 0
    reachable += standing.revisions[-chosen.revisions :]
    reachable += [known for known in standing.revisions if known.name in standing.serving]
    for known in reachable:
        assert known.name not in gone(found, StoredKind.REVISION)
        assert not {one[:12] for one in known.lineage} & gone(found, StoredKind.ADAPTER)
        assert (known.sha256 or "")[:12] not in gone(found, StoredKind.ANSWERS)


@given(standing=histories(), chosen=limits, days=st.integers(0, 200))
def test_what_is_under_way_or_waits_for_a_person_keeps_its_files(
    standing: Holdings, chosen: KeepLimits, days: int
) -> None:
    found = removable(standing, all_items(standing, days), chosen)
    by_number = {known.number: known for known in standing.revisions}
    for made in standing.plans:
        undecided = made.state in OPEN_STATES or made.state is PlanState.INCONCLUSIVE
        if undecided or made.id in standing.running:
            needed = {*by_number[made.parent].lineage, made.adapter or ""}
            assert not {one[:12] for one in needed} & gone(found, StoredKind.ADAPTER)
            assert made.served not in gone(found, StoredKind.REVISION)
            assert f"{made.id}-train" not in gone(found, StoredKind.WORK)


@given(standing=histories(), chosen=limits, days=st.integers(0, 200))
def test_what_a_retraction_deletes_and_certifies_is_left_to_it(
    standing: Holdings, chosen: KeepLimits, days: int
) -> None:
    found = removable(standing, all_items(standing, days), chosen)
    assert not standing.tainted & gone(found, StoredKind.REVISION)
    assert not {one[:12] for one in standing.tainted} & gone(found, StoredKind.ADAPTER)


@given(standing=histories(), chosen=limits, days=st.integers(0, 200))
def test_bytes_of_which_a_line_may_be_read_again_are_kept(
    standing: Holdings, chosen: KeepLimits, days: int
) -> None:
    found = removable(standing, all_items(standing, days), chosen)
    for batch in standing.batches:
        if batch.id in gone(found, StoredKind.ARCHIVE):
            assert batch.quarantined == 0
            assert batch.at_rest
        if f"{batch.name}.accepted.json" in gone(found, StoredKind.RECEIPT):
            assert batch.at_rest


@given(standing=histories(), chosen=limits, days=st.integers(0, 200))
def test_nothing_is_removed_before_its_days_are_over_and_0_is_for_ever(
    standing: Holdings, chosen: KeepLimits, days: int
) -> None:
    found = removable(standing, all_items(standing, days), chosen)
    for kind, kept in (
        (StoredKind.ARCHIVE, chosen.archive_days),
        (StoredKind.ANSWERS, chosen.answers_days),
        (StoredKind.WORK, chosen.work_days),
        (StoredKind.RECEIPT, chosen.receipts_days),
    ):
        assert not gone(found, kind) or 0 < kept < days
    turned_down = {made.served for made in standing.plans if made.state in ENDED}
    assert not (gone(found, StoredKind.REVISION) & turned_down) or 0 < chosen.rejected_days < days


@given(standing=histories(), chosen=limits, days=st.integers(0, 200))
def test_what_is_left_stays_and_keeping_longer_removes_no_more(
    standing: Holdings, chosen: KeepLimits, days: int
) -> None:
    items = all_items(standing, days)
    found = {(one.kind, one.name) for one in removable(standing, items, chosen)}
    left = [item for item in items if (item.kind, item.name) not in found]
    assert removable(standing, left, chosen) == ()
    longer = KeepLimits.model_validate(
        {name: value and value + 5 for name, value in chosen.model_dump().items()}
    )
    assert {(one.kind, one.name) for one in removable(standing, items, longer)} <= found


# --- examples ----------------------------------------------------------------------------------


def test_old_revisions_go_with_the_adapters_that_only_they_have() -> None:
    standing = Holdings(now=NOW, target=5, revisions=chain(5))
    found = removable(standing, all_items(standing, 0), KeepLimits(revisions=2))
    assert within_reach(standing, 2) == {3, 4, 5}
    assert gone(found, StoredKind.REVISION) == {"palora-000001", "palora-000002"}
    assert gone(found, StoredKind.ADAPTER) == {sha(1)[:12], sha(2)[:12]}
    assert {one.because for one in found if one.name == "palora-000001"} == {
        "revision 1 is beyond keep.revisions"
    }


def test_a_stack_keeps_every_adapter_of_what_is_served() -> None:
    stack = (revision(0, None), *(revision(n, n - 1, *range(1, n + 1)) for n in range(1, 6)))
    standing = Holdings(now=NOW, target=5, revisions=stack)
    found = removable(standing, all_items(standing, 99), KeepLimits(revisions=1))
    assert gone(found, StoredKind.ADAPTER) == set()
    assert len(gone(found, StoredKind.REVISION)) == 3


def test_after_a_rollback_the_way_forward_is_kept() -> None:
    standing = Holdings(now=NOW, target=1, revisions=chain(8))
    found = gone(removable(standing, all_items(standing, 0), SHORTEST), StoredKind.REVISION)
    assert found == {f"palora-{n:06}" for n in (3, 4, 5, 6, 7)}


@pytest.mark.parametrize("state", ENDED)
def test_a_candidate_that_was_turned_down_goes_after_its_days(state: PlanState) -> None:
    for days, expected in ((29, set()), (31, {"c7"})):
        made = plan(7, state, moved_at=ago(days))
        standing = Holdings(now=NOW, target=0, revisions=chain(0), plans=(made,))
        found = removable(standing, all_items(standing, 99), KeepLimits())
        assert gone(found, StoredKind.REVISION) == expected


def test_a_candidate_that_a_replica_still_has_loaded_stays() -> None:
    made = plan(7, PlanState.REJECTED)
    standing = Holdings(
        now=NOW, target=0, revisions=chain(0), plans=(made,), serving=frozenset({"c7"})
    )
    found = removable(standing, all_items(standing, 99), KeepLimits())
    assert gone(found, StoredKind.REVISION) == set()


def test_what_no_plan_knows_goes_only_while_none_is_under_way() -> None:
    lost = [StoredItem(kind=StoredKind.ADAPTER, name="lost", changed_at=ago(40))]
    idle = Holdings(now=NOW, target=0, revisions=chain(0))
    busy = idle.model_copy(update={"plans": (plan(1, PlanState.PLANNED),)})
    assert gone(removable(idle, lost, KeepLimits()), StoredKind.ADAPTER) == {"lost"}
    assert removable(busy, lost, KeepLimits()) == ()


def test_what_was_left_half_made_goes_after_a_day_while_no_child_runs() -> None:
    half = StoredItem(kind=StoredKind.HALF, name="adapters/.tmp-1", changed_at=ago(2))
    fresh = half.model_copy(update={"changed_at": ago(0.5)})
    idle = Holdings(now=NOW, target=0, revisions=chain(0))
    busy = idle.model_copy(update={"running": frozenset({1})})
    assert len(removable(idle, [half, fresh], KeepLimits())) == 1
    assert removable(busy, [half], KeepLimits()) == ()


def test_a_clock_set_back_removes_nothing() -> None:
    standing = Holdings(now=ago(400), target=0, revisions=chain(0), plans=(plan(1, ENDED[0]),))
    assert removable(standing, all_items(standing, 0), SHORTEST) == ()
