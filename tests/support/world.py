"""A reconciler over a real ledger, with children and replicas that do as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from daemon.children.jobs import NO_ROWS, JobError, Jobs, JobState, Progress
from daemon.children.request import Rows, with_rows
from daemon.config.settings import Settings
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.ledger.database import Database
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Adapter, Served
from daemon.loop.canary import CanaryRun
from daemon.loop.reconcile import Reconciler
from daemon.loop.rollout import Rollout
from daemon.serving.fleet import Ensured
from daemon.serving.pointer import Canary
from daemon.serving.replica_status import ReplicaStatus
from daemon.training.messages import ProbeReport, TrainDone, TrainRequest
from policies.canary import Traffic
from policies.gate.records import Outcome, Verdict
from policies.planning import Action
from policies.records import Batch, Fact, Operation, Revision, content_id
from tests.support.admitting import admit

START = datetime(2026, 11, 23, 12, tzinfo=UTC)


class FakeJobs(Jobs):
    """Children that exist only as a table; `outcomes` holds what each has left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: dict[Path, BaseModel] = {}
        self.requests: dict[Path, BaseModel] = {}
        self.outcomes: dict[Path, JobState] = {}
        self.progress: dict[Path, Progress] = {}
        self.started: list[tuple[str, Path]] = []

    def prepare(self, workdir: Path, record: BaseModel, rows: Rows = NO_ROWS) -> None:
        lines = [f'["{field}", {item}]' for field, items in rows.items() for item in items]
        text = with_rows(record.model_dump_json(), lines)
        self.prepared[workdir] = type(record).model_validate_json(text)

    def start(self, step: str, workdir: Path) -> int:
        assert workdir not in self.requests, "two children in one directory"
        self.requests[workdir] = self.prepared.pop(workdir)
        self.outcomes.pop(workdir, None)
        self.started.append((step, workdir))
        return len(self.started)

    def poll(self, workdir: Path) -> JobState:
        if workdir in self.outcomes:
            self.requests.pop(workdir, None)
            return self.outcomes[workdir]
        if workdir not in self.requests:
            return JobState("absent")
        return JobState("running", progress=self.progress.get(workdir))

    def kill(self, workdir: Path) -> None:
        self.requests.pop(workdir, None)
        self.outcomes.pop(workdir, None)

    def cancel(self, workdir: Path) -> None:
        self.kill(workdir)

    def running(self) -> tuple[Path, ...]:
        return tuple(w for w in self.requests if w not in self.outcomes)


class FakeFleet:
    """Replicas that follow at once, unless `fault` is raised."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.serves: Revision | None = None
        self.kept: tuple[str, ...] = ()
        self.staged: list[str] = []
        self.canary: Canary | None = None
        self.asked: dict[str, Traffic] = {}
        self.problem: str | None = None

    def traffic(self, name: str) -> Traffic:
        return self.asked.get(name, Traffic())

    async def unsound(self, name: str) -> str | None:
        return self.problem

    @property
    def statuses(self) -> tuple[ReplicaStatus, ...]:
        return ()

    async def ensure(
        self,
        target: Revision,
        previous: Revision | None = None,
        keep: tuple[str, ...] = (),
        is_target: Callable[[], bool] = lambda: True,
        may_stay: Callable[[int], bool] = lambda number: True,
        canary: Callable[[], Canary | None] = lambda: None,
    ) -> Ensured:
        assert is_target()
        if self.fault is not None:
            return Ensured(done=False, answering=False, steps=(), replicas=())
        changed = self.serves != target
        self.serves, self.kept, self.canary = target, keep, canary()
        steps = ("flipped",) if changed else ()
        return Ensured(done=True, answering=True, steps=steps, replicas=())

    async def stage(self, name: str) -> object:
        if self.fault is not None:
            raise self.fault
        self.staged.append(name)
        return object()


@dataclass
class World:
    """`tick` steps both clocks a second; `finish` lets the running child report.

    `now` is what the wall clock says and may be set; `seconds` only ever grow.
    """

    root: Path
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = self.root / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text("{}")
        tree: dict[str, Any] = {
            "state_dir": self.root / "state",
            "model": {"path": model},
            "train": {"rank": 4, "rank_budget": 16, "max_facts": 6, "backoff_s": 10},
            "gate": {"suites": ()},
        }
        for section, values in self.changes.items():
            tree[section] = {**tree.get(section, {}), **values}
        self.settings = Settings(**tree).rooted(self.root)
        self.ledger = Ledger(Database.in_memory(self.root / "ledger.db"))
        self.ledger.revisions.ensure_base("base", START)
        self.now, self.seconds = START, 0.0
        self.fleet = FakeFleet()
        self.told: list[str] = []
        self.drops = 0
        self.crash()

    def crash(self) -> None:
        """The daemon is killed with its children and started again; reports lie where they lay."""
        reports = self.jobs.outcomes if hasattr(self, "jobs") else {}
        self.jobs: FakeJobs = FakeJobs()
        self.jobs.outcomes = {w: s for w, s in reports.items() if s.outcome == "finished"}
        self.canary = CanaryRun(
            *(self.ledger, self.settings.canary, self.fleet),
            changed=self.told.extend,
            wake=lambda: None,
            clock=lambda: self.seconds,
        )
        self.rollout = Rollout(self.ledger, self.fleet, self.canary.wanted)
        self.reconciler = Reconciler(
            self.ledger,
            self.jobs,
            self.rollout,
            self.settings,
            changed=self.told.extend,
            marked=self.canary.marked,
            clock=lambda: self.seconds,
        )

    def tick(self, seconds: float = 1.0) -> Action | None:
        self.now += timedelta(seconds=seconds)
        self.seconds += seconds
        return asyncio.run(self.reconciler.tick(self.now))

    def serve(self) -> Ensured:
        async def run() -> Ensured:
            ensured = await self.rollout.serve(self.now)
            await self.canary.step(self.now)
            return ensured

        return asyncio.run(run())

    def drop(self, count: int, **fields: Any) -> str:
        self.drops += 1
        name = f"b{self.drops}"
        facts = [
            Fact(id=f"{name}-{n}", prompt=f"{name} {n}?", answer=str(n), **fields)
            for n in range(count)
        ]
        return self.admit(name, facts)

    def admit(self, name: str, facts: list[Fact]) -> str:
        batch = Batch(
            id=f"{name}-id",
            name=name,
            received_at=self.now,
            source="inbox",
            accepted=0,
            quarantined=0,
        )
        admit(self.ledger, batch, facts)
        return batch.id

    def retract_line(self, fact_id: str) -> None:
        self.drops += 1
        gone = Fact(id=fact_id, prompt="", answer="", op=Operation.RETRACT)
        self.admit(f"b{self.drops}", [gone])

    @property
    def running(self) -> Path | None:
        found = self.jobs.running()
        return found[0] if found else None

    def finish(
        self,
        outcome: Outcome = Outcome.PASS,
        missed: Callable[[Fact], bool] = lambda _: False,
    ) -> None:
        """The running child writes its report; `missed` says which facts were not learnt."""
        workdir = self.running
        assert workdir is not None
        report = report_for(self.jobs.requests[workdir], self.root, outcome, missed)
        self.jobs.outcomes[workdir] = JobState("finished", report=report.model_dump(mode="json"))

    def report_progress(self, stage: str, done: int) -> None:
        """The running child says how far it is."""
        workdir = self.running
        assert workdir is not None
        self.jobs.progress[workdir] = Progress(stage=stage, done=done, total=10)

    def fail(self, kind: str = "Broken", final: bool = False) -> None:
        workdir = self.running
        assert workdir is not None
        error = JobError(kind=kind, error=f"{kind} happened", final=final)
        self.jobs.outcomes[workdir] = JobState("failed", error=error)

    def settle(self, outcome: Outcome = Outcome.PASS, limit: int = 200) -> int:
        """Tick and let every child report until nothing is left to do; how many ticks."""
        idle = 0
        for count in range(limit):
            action = self.tick(60)
            if self.running is not None:
                self.finish(outcome)
                idle = 0
            elif action is None:
                idle += 1
                if idle == 2:
                    return count
            else:
                idle = 0
        raise AssertionError(f"not settled after {limit} ticks")


def report_for(
    request: BaseModel, root: Path, outcome: Outcome, missed: Callable[[Fact], bool]
) -> BaseModel:
    """What a child would report to this request."""
    if isinstance(request, TrainRequest):
        return _trained(request)
    if isinstance(request, JudgingRequest):
        facts = request.evaluation.facts
        verdict = Verdict(
            outcome=outcome,
            rule="as the test says",
            reasons=(),
            suites=(),
            learnt=tuple(f.id for f in facts if not missed(f)),
            not_learnt=tuple(f.id for f in facts if missed(f)),
        )
        return EvaluationReport(verdict=verdict, scorecards=(), seconds={})
    model = root / "model"
    return ProbeReport(
        probe=model,
        served_dir=model,
        served_sha256="base-sha",
        base_sha256="base-sha",
        fitted=True,
        seconds=1.0,
    )


def _trained(request: TrainRequest) -> TrainDone:
    text = "-".join(f.id for f in request.facts) + f"-{request.seed}-{request.lineage_sha256}"
    sha = content_id(text)
    name = f"palora-{request.number:06}-{sha[:8]}"
    return TrainDone(
        adapter=Adapter(sha256=sha, rank=request.rank),
        served=Served(name=name, sha256=sha),
        rank=request.rank,
        report={},
        seconds={},
    )
