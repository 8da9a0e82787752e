"""Requests of children are read beside the loop, and never start what was decided otherwise."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from daemon.children.jobs import Jobs
from daemon.children.request import read
from daemon.config.settings import Settings
from daemon.gate.messages import JudgingRequest
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Adapter, PlanHead, Served
from daemon.loop import requests
from daemon.training.messages import ProbeReport, TrainRequest
from policies.gate.records import Outcome, Verdict
from policies.planning import MakePlan, Run, Step
from policies.records import Batch, Fact, PlanKind, PlanState
from tests.support.admitting import admit
from tests.support.world import World

REBUILT = PlanKind.CONSOLIDATE
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
PASSED = Verdict(outcome=Outcome.PASS, rule="", reasons=(), suites=())


def settings_in(root: Path, **train: Any) -> Settings:
    model = root / "model"
    model.mkdir()
    tree: dict[str, Any] = {"state_dir": root, "model": {"path": model}, "train": train}
    return Settings(**tree).rooted(root)


def probe_in(root: Path) -> ProbeReport:
    model = root / "model"
    return ProbeReport(
        probe=model,
        served_dir=model,
        served_sha256="base",
        base_sha256="base",
        fitted=False,
        seconds=0.0,
    )


def learn(ledger: Ledger, settings: Settings, name: str, count: int) -> int:
    """A plan for a new batch of so many facts; its number."""
    batch = Batch(id=name, name=name, received_at=NOW, source="inbox", accepted=0, quarantined=0)
    facts = [Fact(id=f"{name}-{n}", prompt=f"{name} {n}?", answer=str(n)) for n in range(count)]
    admit(ledger, batch, facts)
    action = MakePlan(
        kind=PlanKind.LEARN,
        rank=4,
        seed=0,
        because="",
        fact_ids=tuple(fact.id for fact in facts),
        replaces=ledger.revisions.target().lineage,
    )
    return ledger.planning.make_plan(action, NOW, max_replay=settings.train.max_replay).id


def go_live(ledger: Ledger, plan: int) -> None:
    served = Served(name=f"palora-{plan}", sha256=f"s{plan}")
    ledger.steps.trained(plan, Adapter(sha256=f"a{plan}", rank=4), served, NOW)
    ledger.steps.judged(plan, PASSED, (), PlanState.PASSED, NOW)
    ledger.revisions.promote(plan, served, NOW)


async def written(
    ledger: Ledger, settings: Settings, plan: PlanHead, step: Step, workdir: Path
) -> None:
    """The request of a plan's child, as `Jobs` writes it."""
    write = partial(Jobs().prepare, workdir)
    probe = probe_in(settings.state_dir)
    await requests.write_request(ledger, settings, plan, step, probe, NOW, write)


def test_a_request_is_read_in_another_thread_and_holds_no_more_than_max_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path, max_replay=8)
    opened: list[int] = []
    with Ledger.open(settings.layout.ledger) as ledger:
        ledger.revisions.ensure_base("base", NOW)
        for batch in range(4):
            go_live(ledger, learn(ledger, settings, f"b{batch}", 5))
        plan = ledger.plans.head(learn(ledger, settings, "new", 3))
        real = Ledger.open

        def noted(path: Path, readonly: bool = False) -> Ledger:
            assert readonly
            opened.append(threading.get_ident())
            return real(path, readonly)

        monkeypatch.setattr(Ledger, "open", noted)
        workdir = tmp_path / "5-train"
        asyncio.run(written(ledger, settings, plan, Step.TRAIN, workdir))
    request = TrainRequest.model_validate_json(read(workdir))
    assert [fact.id for fact in request.facts] == ["new-0", "new-1", "new-2"]
    assert len(request.replay) == 8
    assert {fact.id.partition("-")[0] for fact in request.replay} == {"b0", "b1", "b2", "b3"}
    assert opened
    assert threading.get_ident() not in opened


def evaluated(ledger: Ledger, settings: Settings, workdir: Path) -> None:
    """A new plan of three facts is trained, and the request to judge it is written."""
    plan = learn(ledger, settings, "new", 3)
    served = Served(name="palora-new", sha256="s")
    ledger.steps.trained(plan, Adapter(sha256="a", rank=4), served, NOW)
    asyncio.run(written(ledger, settings, ledger.plans.head(plan), Step.EVALUATE, workdir))


def test_a_request_to_judge_holds_the_new_facts_a_sample_and_all_that_is_known(
    tmp_path: Path,
) -> None:
    settings = settings_in(tmp_path)
    workdir = tmp_path / "work" / "5-evaluate"
    with Ledger.open(settings.layout.ledger) as ledger:
        ledger.revisions.ensure_base("base", NOW)
        for batch in range(4):
            go_live(ledger, learn(ledger, settings, f"b{batch}", 5))
        evaluated(ledger, settings, workdir)
        known = ledger.facts.find(ids=[f"b{batch}-{n}" for batch in range(4) for n in range(5)])
    asked = JudgingRequest.model_validate_json(read(workdir)).evaluation
    assert [fact.id for fact in asked.facts] == ["new-0", "new-1", "new-2"]
    assert sorted(asked.standing, key=lambda fact: fact.id) == list(known)
    assert {fact.id for _, fact in asked.earlier} == {fact.id for fact in known}
    assert all(fact.id.startswith(f"{batch}-") for batch, fact in asked.earlier)


def test_the_daemons_memory_does_not_grow_with_the_facts_of_a_request(tmp_path: Path) -> None:
    """A rebuild asks for every fact that there is."""
    settings = settings_in(tmp_path, max_facts=10_000)
    peaks = []
    with Ledger.open(settings.layout.ledger) as ledger:
        ledger.revisions.ensure_base("base", NOW)
        for name, count in (("few", 2000), ("many", 6000)):
            go_live(ledger, learn(ledger, settings, name, count))
            lineage = ledger.revisions.target().lineage
            action = MakePlan(kind=REBUILT, rank=4, seed=0, because="", replaces=lineage)
            plan = ledger.planning.make_plan(action, NOW, max_replay=0)
            workdir = tmp_path / name
            tracemalloc.start()
            asyncio.run(written(ledger, settings, plan, Step.TRAIN, workdir))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            asked = TrainRequest.model_validate_json(read(workdir))
            assert len(asked.facts) == ledger.knowledge.known_count(lineage, NOW)
            ledger.plans.move(plan.id, PlanState.PLANNED, PlanState.CANCELLED, NOW)
    few, many = peaks
    assert many < few + 2**20, "six thousand facts more take less than a megabyte"


def test_a_plan_that_is_cancelled_while_its_request_is_put_together_starts_no_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    world.drop(2)
    world.tick()
    world.tick()
    world.finish()  # the probe
    real = requests.write_request

    async def interrupted(*arguments: Any) -> None:
        await real(*arguments)
        world.ledger.plans.move(1, PlanState.PLANNED, PlanState.CANCELLED, world.now)

    with monkeypatch.context() as patch:
        patch.setattr(requests, "write_request", interrupted)
        for _ in range(3):
            assert not isinstance(world.tick(), Run)
    assert world.running is None
    assert world.ledger.steps.leases() == ()
    world.settle()
    assert world.ledger.plans.head(2).state is PlanState.LIVE
