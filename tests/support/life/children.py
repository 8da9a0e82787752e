"""Leased children that live in the test's own process: real directories, locks and reports."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from adapters import files, store
from daemon.base import faults
from daemon.children import request
from daemon.children.jobs import JobError, Jobs
from daemon.gate.messages import EvaluationReport, JudgingRequest
from daemon.ledger.records import Adapter, Served
from daemon.training.messages import ProbeReport, ProbeRequest, TrainDone, TrainRequest
from policies.gate.records import AnswerLikelihood, Outcome, UnlearningCheck, Verdict
from policies.gate.unlearning import UnlearningTolerance, unlearning_results
from policies.records import Fact
from tests.support.fake_steps import compose

FAR = AnswerLikelihood(rank=900, probability=0.0001)


class Broken(Exception):
    """What a step raises when a test wants it to end with an error."""

    def __init__(self, kind: str, final: bool) -> None:
        super().__init__(f"{kind} happened")
        self.kind, self.final = kind, final


@dataclass
class Told:
    """What the test wants the steps to find."""

    outcome: Outcome = Outcome.PASS
    misses: bool = False
    fault: Broken | None = None


@dataclass
class Child:
    """A process that works in one directory, as `subprocess.Popen` shows it."""

    step: str
    workdir: Path
    pid: int
    returncode: int | None = None
    lock: int | None = None

    @property
    def plan(self) -> int:
        return int(self.workdir.name.split("-")[0])

    def begin(self) -> None:
        self.lock = os.open(self.workdir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def end(self, code: int) -> None:
        if self.returncode is None:
            self.returncode = code
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def fail(self, error: JobError) -> None:
        files.write_text(self.workdir / "error.json", error.model_dump_json())

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self.end(0)

    def kill(self) -> None:
        self.end(-signal.SIGKILL)

    def wait(self) -> int | None:
        return self.returncode


@dataclass
class World:
    """All children of all daemons so far, and what was judged: by plan, the bytes and the word.

    `loaded` is the hash of the bytes that the first replica answers a name from.
    """

    loaded: Callable[[str], str | None]
    living: list[Child] = field(default_factory=list)
    judged: dict[int, tuple[str, Outcome]] = field(default_factory=dict)
    started: int = 0

    def running(self) -> list[Child]:
        self.living = [child for child in self.living if child.returncode is None]
        return self.living


class LocalJobs(Jobs):
    """`Jobs` as it is, with children that are run when the test says so."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def start(self, step: str, workdir: Path) -> int:
        (workdir / "log").touch()
        faults.point(f"{step}:requested")
        self._world.started += 1
        child = Child(step, workdir, 10_000_000 + self._world.started)
        here = [c.workdir for c in self._world.running()]
        assert workdir not in here, f"two children in {workdir.name}"
        child.begin()
        self._world.living.append(child)
        self._children[workdir] = cast("Any", child)
        faults.point(f"{step}:started")
        return child.pid


def work(world: World, child: Child, told: Told, over: bool = False) -> None:
    """Have a child do its step to the end; whatever a fault point raises passes through.

    `over`: its plan has ended, and the facts that it was to read may be gone.
    """
    if not (child.workdir / "report.json").exists():
        try:
            text = request.read(child.workdir)
            if told.fault is not None:
                raise told.fault
            report = _STEPS[child.step](world, child, text, told)
        except request.RowsMissing as error:
            assert over, f"an open plan's child has lost its facts: {error}"
            child.fail(JobError(kind="RowsMissing", error=str(error)))
        except Broken as error:
            child.fail(JobError(kind=error.kind, error=str(error), final=error.final))
        else:
            faults.point(f"{child.step}:done")
            files.write_text(child.workdir / "report.json", report.model_dump_json())
            faults.point(f"{child.step}:reported")
    child.end(0)


def _probe(_world: World, _child: Child, text: str, _told: Told) -> ProbeReport:
    request = ProbeRequest.model_validate_json(text)
    staging = store.staging(request.probes, "probe")
    (staging / "probe.json").write_text("{}")
    return ProbeReport(
        probe=store.publish(staging, request.probes, {}),
        served_dir=request.model_dir,
        served_sha256="base-sha",
        base_sha256="base-sha",
        fitted=True,
        seconds=0.0,
    )


def _train(_world: World, child: Child, text: str, _told: Told) -> TrainDone:
    request = TrainRequest.model_validate_json(text)
    replayed = [f.id for f in request.replay]
    learnt = json.dumps(
        [[f.id for f in request.facts], replayed, request.seed, request.lineage_sha256]
    )
    said = json.dumps([[f.prompt, f.answer] for f in (*request.facts, *request.replay)])
    (child.workdir / "examples.jsonl").write_text(said)
    staging = store.staging(request.adapters, child.workdir.name)
    (staging / "adapter_config.json").write_text(learnt)
    faults.point("train:written")
    adapter = store.publish(staging, request.adapters, {})
    faults.point("train:adapter-published")
    served = compose(request, child.workdir.name, learnt)
    faults.point("train:revision-published")
    sha = str(store.read_manifest(adapter)["sha256"])
    return TrainDone(
        adapter=Adapter(sha256=sha, rank=request.rank),
        served=Served(name=served.name, sha256=str(store.read_manifest(served)["sha256"])),
        rank=request.rank,
        report={},
        seconds={},
    )


def _evaluate(world: World, child: Child, text: str, told: Told) -> EvaluationReport:
    evaluation = JudgingRequest.model_validate_json(text).evaluation
    plan = child.plan
    asked = world.loaded(evaluation.candidate.name)
    if asked is None:
        raise Broken("ServerUnreachable", final=False)
    missed = _missed(evaluation.facts) if told.misses else []
    world.judged[plan] = (asked, told.outcome)
    verdict = Verdict(
        outcome=told.outcome,
        rule="as the test says",
        reasons=(),
        suites=(),
        learnt=tuple(f.id for f in evaluation.facts if f.id not in missed),
        not_learnt=tuple(missed),
        unlearning=unlearning_results(
            [
                UnlearningCheck(fact=fact.id, held_out=False, base=FAR, candidate=FAR)
                for fact in evaluation.unlearn
            ],
            UnlearningTolerance(),
        ),
    )
    return EvaluationReport(verdict=verdict, scorecards=(), seconds={})


def _missed(facts: tuple[Fact, ...]) -> list[str]:
    return [fact.id for fact in facts[:1]]


_STEPS: dict[str, Callable[[World, Child, str, Told], BaseModel]] = {
    "probe": _probe,
    "train": _train,
    "evaluate": _evaluate,
}
