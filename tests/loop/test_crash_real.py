"""The real thing killed in the middle of training, of evaluation and of promotion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters import store
from daemon.base import faults
from daemon.children.jobs import last_progress
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import PlanHead
from daemon.serving.client import HttpServer
from daemon.serving.pointer import read
from demo.setup import ROOT
from policies.errors import LedgerBusy, LedgerUnusable
from policies.records import BatchState, PlanState
from tests.support.real import NEEDS_MODEL, configure

FACTS = 8
PATIENCE_S = 240.0

pytestmark = [
    pytest.mark.endtoend,
    pytest.mark.timeout(420),
    NEEDS_MODEL,
]


class Daemon:
    """`palorad run` as a process that is killed and started again."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.settings = Settings.load(config)
        self.log = config.parent / "daemon.log"
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, die_at: str = "") -> None:
        environment = {**os.environ, faults.VARIABLE: die_at} if die_at else dict(os.environ)
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "daemon.cli.main", "run", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environment,
            )

    def kill(self) -> None:
        assert self.child is not None
        self.child.kill()
        assert self.child.wait() == -signal.SIGKILL

    def until(self, done: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not done():
            assert self.child is not None
            assert self.child.poll() is None, f"the daemon ended:\n{self.log.read_text()[-2000:]}"
            assert time.monotonic() < end, f"{what}:\n{self.log.read_text()[-2000:]}"
            time.sleep(0.05)

    def at_work(self, step: str, stage: str, done: int) -> bool:
        """Whether the child of the first plan is that far."""
        progress = last_progress(self.settings.layout.workdir(1, step))
        return progress is not None and progress.stage.startswith(stage) and progress.done >= done

    def plan(self) -> PlanHead | None:
        try:
            with Ledger.open(self.settings.layout.ledger, readonly=True) as ledger:
                heads = ledger.plans.heads()
                return heads[0] if heads else None
        except (LedgerBusy, LedgerUnusable):
            return None

    def in_state(self, state: PlanState) -> bool:
        plan = self.plan()
        return plan is not None and plan.state is state


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(configure(tmp_path))
    yield made
    if made.child is not None and made.child.poll() is None:
        made.child.terminate()
        made.child.wait()


def test_killed_in_training_evaluation_and_promotion_it_ends_live_and_verified(
    daemon: Daemon,
) -> None:
    layout = daemon.settings.layout
    layout.inbox.mkdir(parents=True)
    source = (ROOT / "examples" / "facts" / "01-capitals.jsonl").read_text()
    (layout.inbox / "facts.jsonl").write_text("".join(source.splitlines(True)[:FACTS]))

    daemon.start()
    daemon.until(lambda: daemon.at_work("train", "train", 30), "training")
    daemon.kill()
    assert not (layout.workdir(1, "train") / "report.json").exists()

    daemon.start()
    daemon.until(lambda: daemon.at_work("evaluate", "", 1), "evaluating")
    daemon.kill()
    plan = daemon.plan()
    assert plan is not None
    assert plan.state is PlanState.TRAINED
    trained = plan.adapter

    daemon.start(die_at="promote:within")
    assert daemon.child is not None
    assert daemon.child.wait(PATIENCE_S) == -signal.SIGKILL
    assert daemon.in_state(PlanState.PASSED)
    pointer = read(layout.alias)
    assert pointer is not None
    assert pointer.revision == 0

    daemon.start(die_at="serve:before-flip")
    assert daemon.child.wait(PATIENCE_S) == -signal.SIGKILL
    assert daemon.in_state(PlanState.LIVE)

    daemon.start()
    daemon.until(lambda: _revision(daemon) == 1, "serving")
    with Ledger.open(layout.ledger, readonly=True) as ledger:
        ledger.events.verify_chain()
        (head,) = ledger.plans.heads()
        assert (head.state, head.adapter, head.attempts) == (PlanState.LIVE, trained, 0)
        target = ledger.revisions.target()
        assert [r.number for r in ledger.revisions.all()] == [0, 1]
        assert ledger.batches.state(ledger.batches.latest()[0].id) is BatchState.LIVE
    assert not store.verify(layout.served / target.served_name)
    assert [p.name for p in layout.served.iterdir()] == [target.served_name]
    assert len(list(layout.adapters.iterdir())) == 1
    daemon.child.terminate()
    assert daemon.child.wait(60) == 0


def _revision(daemon: Daemon) -> int | None:
    import asyncio

    async def ask() -> int | None:
        server = HttpServer(daemon.settings.server.urls[0])
        try:
            answer = await server.chat(daemon.settings.model.alias, "Hello", max_tokens=1)
            return int(answer.headers["x-palorad-revision"])
        except (OSError, RuntimeError):
            return None
        finally:
            await server.aclose()

    return asyncio.run(ask())
