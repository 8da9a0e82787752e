"""Killed at every durable step, the daemon started again ends in the same state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.base import faults
from policies.records import BatchState, PlanKind, PlanState
from tests.support.crashing import Site

pytestmark = [pytest.mark.durability, pytest.mark.timeout(600)]

# Reached only until the first file is live; every other point is reached again by a later file.
AT_FIRST = ("ensure_base", "probe", "remember", "release")
FIRST_POINTS = (
    *(
        f"{name}:{when}"
        for name in ("ensure_base", "remember", "release")
        for when in faults.PHASES
    ),
    *(
        f"probe:{when}"
        for when in ("requested", "started", "written", "published", "done", "reported")
    ),
)


@contextmanager
def site(
    root: Path, rank_budget: int = 64, lineage: str = "warm-start", **environment: str
) -> Iterator[Site]:
    made = Site(root, environment, rank_budget, lineage)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every durable step that a daemon passes when all goes well and when a step fails once."""
    root = tmp_path_factory.mktemp("trace")
    with site(root / "site", **{faults.TRACE: str(root / "trace")}) as traced:
        for number, prompt in enumerate(("first", "false", "flaky", "fourth")):
            traced.drop(f"{number}.jsonl", [prompt])
        traced.point("rollback", 1)
        traced.point("forward", 3)
        assert traced.stop() == 0
    return {line.split("#")[0] for line in (root / "trace").read_text().split()}


def test_no_point_is_forgotten(points: set[str]) -> None:
    assert {p for p in points if p.startswith(AT_FIRST)} == set(FIRST_POINTS)
    assert {"promote:within", "serve:flipped", "train:adapter-published", "intake:receipt"} < points


@pytest.mark.parametrize("point", FIRST_POINTS)
def test_killed_at_first_it_ends_as_if_nothing_had_happened(point: str, tmp_path: Path) -> None:
    with site(tmp_path / "site") as one:
        one.die_at(point)
        one.drop("a.jsonl", ["one", "two"])
        assert one.died(point)
        assert one.stop() == 0
        expect(one, [("a.jsonl", 2, BatchState.LIVE)])


def test_killed_anywhere_later_it_ends_as_if_nothing_had_happened(
    points: set[str], tmp_path: Path
) -> None:
    later = sorted(p for p in points if not p.startswith(AT_FIRST))
    later.sort(key=lambda p: p == "serve:retired")
    dropped = [("0.jsonl", 1, BatchState.LIVE)]
    with site(tmp_path / "site", rank_budget=4) as one:
        one.settings = one.settings.model_copy(
            update={"train": one.settings.train.model_copy(update={"rank_budget": 1 << 20})}
        )
        one.start()
        one.drop("0.jsonl", ["zero"])
        for number, point in enumerate(later, start=1):
            one.die_at(point)
            if point.startswith("rollback"):
                live = sum(state is BatchState.LIVE for _, _, state in dropped)
                one.point("rollback", live - 1)
                one.point("forward", live)
            else:
                false = point.startswith("judged")
                paraphrase = "false" if false else "flaky" if point.startswith("failed") else "true"
                one.drop(f"{number}.jsonl", [f"{paraphrase} {number}"])
                dropped.append(
                    (f"{number}.jsonl", 1, BatchState.REJECTED if false else BatchState.LIVE)
                )
            one.until(lambda at=point: one.died(at), f"dying at {point}")  # type: ignore[misc]  # a default binds the loop's value
        assert one.stop() == 0
        expect(one, dropped)


def expect(one: Site, batches: list[tuple[str, int, BatchState]]) -> None:
    """The end as it must be: each file one plan, each good one one revision, nothing left over."""
    state = one.state()
    good = [b for b in batches if b[2] is BatchState.LIVE]
    assert state["target"] == len(good)
    assert [(n, p) for n, p, _, _ in state["revisions"]] == [
        (n, n - 1 if n else None) for n in range(len(good) + 1)
    ]
    assert [len(lineage) for _, _, lineage, _ in state["revisions"]] == [0] + [1] * len(good)
    states = {BatchState.LIVE: PlanState.LIVE, BatchState.REJECTED: PlanState.REJECTED}
    assert [(kind, where, facts) for _, kind, where, facts, _, _ in reversed(state["plans"])] == [
        (PlanKind.LEARN, states[where], count) for _, count, where in batches
    ]
    assert [(b[0], b[1], b[3]) for b in reversed(state["batches"])] == batches
    assert {fact[1] for fact in state["facts"]} <= {"done", "rejected"}
    assert len(state["facts"]) == sum(count for _, count, _ in batches)
    assert state["leases"] == ()
    assert state["alias"]["revision"] == len(good)
    assert state["alias"]["model"] == state["revisions"][-1][3]
    assert state["inbox"] == sorted(f"{name}.accepted.json" for name, _, _ in batches)
    told = sorted((r["file"], r["accepted"], r["state"]) for r in state["receipts"])
    assert told == sorted((name, count, where.value) for name, count, where in batches)
    assert len(state["archive"]) == len(state["adapters"]) == len(state["served"]) == len(batches)


def test_interrupted_twice_it_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    with site(tmp_path / "site", PALORAD_TEST_STEP_S="0.5") as one:
        one.die_at("lease:after#2", "interrupted:within", "interrupted:after#2", "trained:within")
        one.drop("a.jsonl", ["one"])
        assert one.died("interrupted:within")
        assert one.died("trained:within")
        assert one.stop() == 0
        expect(one, [("a.jsonl", 1, BatchState.LIVE)])


def test_consolidation_relearning_and_rejection_survive_kills(tmp_path: Path) -> None:
    def story(one: Site) -> dict[str, Any]:
        one.drop("a.jsonl", ["first 1", "first 2"])
        one.drop("b.jsonl", ["second 1", "hard 2"])
        one.drop("c.jsonl", ["false 1"])
        one.point("rollback", 1)
        one.point("forward", 3)
        assert one.stop() == 0
        return one.state()

    with site(tmp_path / "calm", rank_budget=8, lineage="stack") as calm:
        calm.start()
        expected = story(calm)
    assert PlanKind.CONSOLIDATE in [plan[1] for plan in expected["plans"]]
    with site(tmp_path / "rough", rank_budget=8, lineage="stack") as rough:
        rough.die_at(
            "promote:within#2", "judged:before#3", "serve:flipped#2", "create_plan:after#2"
        )
        assert story(rough) == expected


def test_going_on_from_the_former_adapter_survives_kills(tmp_path: Path) -> None:
    def story(one: Site) -> dict[str, Any]:
        one.drop("a.jsonl", ["first 1", "first 2"])
        one.drop("b.jsonl", ["second 1"])
        one.drop("c.jsonl", ["false 1"])
        assert one.stop() == 0
        return one.state()

    with site(tmp_path / "calm") as calm:
        calm.start()
        expected = story(calm)
    assert [len(lineage) for _, _, lineage, _ in expected["revisions"]] == [0, 1, 1]
    with site(tmp_path / "rough") as rough:
        rough.die_at(
            "create_plan:after#2", "promote:within#2", "judged:before#3", "serve:flipped#2"
        )
        assert story(rough) == expected


def test_sigterm_in_the_middle_leaves_at_once_and_counts_nothing(tmp_path: Path) -> None:
    with site(tmp_path / "site", PALORAD_TEST_STEP_S="1.0") as one:
        one.start()
        (one.layout.inbox).mkdir(parents=True, exist_ok=True)
        (one.layout.inbox / "a.jsonl").write_text('{"prompt": "one", "answer": "1"}\n')
        one.until(lambda: training(one), "training")
        assert one.stop() == 0
        with one.reading() as ledger:
            assert ledger.steps.leases() == ()
            assert ledger.plans.head(1).attempts == ledger.plans.head(1).interruptions == 0
        assert int((one.layout.workdir(1, "train") / "counter").read_text()) >= 1
        one.start()
        one.until(lambda: one._rests("a.jsonl"), "learning")
        assert one.stop() == 0
        expect(one, [("a.jsonl", 1, BatchState.LIVE)])


def training(one: Site) -> bool:
    return (one.layout.workdir(1, "train") / "counter").exists()
