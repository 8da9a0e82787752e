"""A real daemon process with real children, made by fork so that a start costs no import.

The daemon is `Service` with its real ledger, intake, fleet and worker; only what the steps do is
`tests.support.fake_steps`, and the replica answers from stored identities behind the real
middleware.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvicorn

from adapters import files
from daemon.base import faults
from daemon.base.control import ask
from daemon.children import worker
from daemon.children.jobs import Jobs
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop.instance import alone
from daemon.loop.logs import configure_log
from daemon.loop.preflight import prepare_state
from daemon.loop.service import Service
from daemon.serving.alias import AdminGateway
from daemon.serving.servers import Servers
from daemon.web.page import Page
from policies.errors import DaemonUnreachable, LedgerBusy, LedgerUnusable, RequestRefused
from policies.records import BatchState
from tests.support import clocks
from tests.support.fake_vllm import Replica

PATIENCE_S = 30.0


class Forked:
    """A forked process with the part of `subprocess.Popen` that is used of it."""

    def __init__(self, work: Callable[[], int], environment: dict[str, str], log: Path) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                signal.set_wakeup_fd(-1)
                out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(out, 1)
                os.dup2(out, 2)
                sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
                os.environ.update(environment)
                code = work()
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        end = time.monotonic() + patience_s
        while (code := self.poll()) is None:
            assert time.monotonic() < end, f"process {self.pid} does not end"
            time.sleep(0.005)
        return code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class ForkedJobs(Jobs):
    """Children forked from the daemon; otherwise `Jobs` as it is."""

    def start(self, step: str, workdir: Path) -> int:
        faults.point(f"{step}:requested")
        child = Forked(
            lambda: _alone(step, workdir),
            {"PALORAD_PARENT": str(os.getpid())},
            workdir / "log",
        )
        self._began(workdir, cast("subprocess.Popen[bytes]", child))
        faults.point(f"{step}:started")
        return child.pid


def _alone(step: str, workdir: Path) -> int:
    """The worker without the daemon's open files, which an exec would have closed."""
    os.closerange(3, 256)
    return worker.main(step, workdir)


@dataclass
class Site:
    """A state directory, its settings, one replica process, and a daemon now and then."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    rank_budget: int = 64
    lineage: str = "warm-start"
    gpu_sharing: str = "separate"
    starts: int = 0
    deaths: int = 0
    patience_s: float = PATIENCE_S
    page_port: int = 0
    changed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = self.root / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text("{}")
        self.replica_socket = _listening()
        port = self.replica_socket.getsockname()[1]
        self.settings = Settings.model_validate(
            {
                "state_dir": self.root / "s",
                "model": {"path": model},
                "server": {
                    "kind": "vllm" if self.gpu_sharing == "sleep" else "embedded",
                    "gpu_sharing": self.gpu_sharing,
                    "mode": "attach",
                    "urls": [f"http://127.0.0.1:{port}"],
                    "drain_s": 0.0,
                },
                "probe": {"skill": model / "config.json", "path": None},
                "train": {
                    "rank": 4,
                    "rank_budget": self.rank_budget,
                    "lineage": self.lineage,
                    "backoff_s": 0.0,
                    "replay": {"known": "", "reasoning": ""},
                },
                "gate": {"suites": ()},
                "intake": {"stable_s": 0.0, "rescan_s": 0.2, "watch": "off"},
                "daemon": {"tick_s": 0.01},
                **({"web": {"port": self.page_port}} if self.page_port else {}),
                **self.changed,
            }
        ).rooted(self.root)
        self.layout = self.settings.layout
        self.daemon: Forked | None = None
        self.replica = Forked(self._replica, {}, self.root / "replica.log")

    # --- processes -----------------------------------------------------------------------------

    def _replica(self) -> int:
        gateway = AdminGateway(self.layout.alias, self.layout.admin_key, self.layout.served)
        replica = Replica(gateway)
        config = uvicorn.Config(replica.middleware, log_level="error", lifespan="off")
        asyncio.run(uvicorn.Server(config).serve([self.replica_socket]))
        return 0

    def _daemon(self) -> int:
        os.environ.setdefault("PALORAD_STEPS", "tests.support.fake_steps")
        clocks.obey()
        settings = self.settings
        prepare_state(settings)
        configure_log("info")
        with alone(self.layout), Ledger.open(self.layout.ledger) as ledger:

            async def run() -> None:
                service = Service(
                    settings,
                    ledger,
                    Servers(settings),
                    reload=self._changed,
                    jobs=None if settings.train.launcher == "ray" else ForkedJobs(),
                    page=Page(settings) if self.page_port else None,
                )
                await service.run()

            asyncio.run(run())
        return 0

    def _changed(self) -> Settings:
        """What a reload finds: other attempts, and an inbox that needs a restart."""
        train = self.settings.train.model_copy(update={"attempts": 7})
        intake = self.settings.intake.model_copy(update={"inbox": self.root / "other"})
        return self.settings.model_copy(update={"train": train, "intake": intake})

    def restart_replica(self) -> None:
        """The server is killed and started again: nothing loaded, nothing verified."""
        self.replica.kill()
        self.replica.wait()
        self.replica = Forked(self._replica, {}, self.root / "replica.log")

    def move(self, state_dir: Path) -> None:
        """The stopped daemon's state directory is renamed, and the settings follow."""
        self.settings.state_dir.rename(state_dir)
        self.use(state_dir)

    def use(self, state_dir: Path) -> None:
        """Daemon and replica work on another state directory from their next start on."""
        inbox = self.settings.intake.model_copy(update={"inbox": state_dir / "inbox"})
        changed = {"state_dir": state_dir, "intake": inbox}
        self.settings = self.settings.model_copy(update=changed)
        self.layout = self.settings.layout
        self.restart_replica()

    def start(self) -> Forked:
        self.starts += 1
        self.daemon = Forked(self._daemon, self.environment, self.root / "daemon.log")
        return self.daemon

    def die_at(self, *points: str) -> None:
        """Start the daemon anew so that it, or a child of it, dies once at each of these."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
        self.environment[faults.VARIABLE] = ",".join(points)
        self.environment[faults.ONCE] = str(self.root / f"died-{self.deaths}")
        self.deaths += 1
        self.starts = 0
        self.start()

    def died(self, point: str) -> bool:
        """Whether something died there since `die_at`."""
        return Path(f"{self.environment[faults.ONCE]}.{point}").exists()

    def alive(self) -> Forked:
        """The daemon, started again if something has killed it."""
        if self.daemon is None or self.daemon.poll() is not None:
            code = None if self.daemon is None else self.daemon.returncode
            assert code in (None, -signal.SIGKILL), f"the daemon ended with {code}:\n{self.log}"
            assert self.starts < 5, f"the daemon dies again and again:\n{self.log}"
            return self.start()
        return self.daemon

    @property
    def log(self) -> str:
        return (self.root / "daemon.log").read_text()[-4000:]

    def close(self) -> None:
        for process in (self.daemon, self.replica):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        self.replica_socket.close()

    # --- what a user does ----------------------------------------------------------------------

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait, starting the daemon again whenever it has died."""
        end = time.monotonic() + self.patience_s
        while True:
            self.alive()
            try:
                if done():
                    return
            except (LedgerBusy, LedgerUnusable):
                pass
            assert time.monotonic() < end, f"{what} took too long:\n{self.log}"
            time.sleep(0.01)

    def drop(self, name: str, prompts: list[str]) -> None:
        """Put a file into the inbox once, and wait until its batch has come to rest."""
        self.layout.inbox.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"prompt": p, "answer": f"{p}!"}) for p in prompts]
        self.put(name, lines)
        self.until(lambda: self._rests(name), f"learning {name}")

    def put(self, name: str, lines: Sequence[str]) -> None:
        """Put a file of these lines into the inbox as a careful writer does: synced."""
        self.layout.inbox.mkdir(parents=True, exist_ok=True)
        beside = self.layout.inbox / f".drop-{name}.part"
        beside.write_text("\n".join(lines) + "\n")
        files.put_in_place(beside, self.layout.inbox / name)

    def _rests(self, name: str) -> bool:
        with self.reading() as ledger:
            known = [batch for batch in ledger.batches.latest() if batch.name == name]
            if not known or (self.layout.inbox / name).exists():
                return False
            state = ledger.batches.state(known[0].id)
            return (
                state not in (BatchState.WAITING, BatchState.LEARNING)
                and ledger.plans.open_plan() is None
                and not ledger.steps.leases()
                and not ledger.facts.counts(known[0].id).pending
                and self._serves(ledger.revisions.target().number)
            )

    def _serves(self, number: int) -> bool:
        try:
            return bool(json.loads(self.layout.alias.read_text())["revision"] == number)
        except FileNotFoundError:  # a daemon that was restored writes it once it has begun
            return False

    def point(self, command: str, to: int) -> None:
        """`palorad rollback` or `forward` until it is done, however often the daemon dies."""

        def done() -> bool:
            try:
                ask(self.layout.control_socket, command, to=to, because="a test")
            except (DaemonUnreachable, RequestRefused):
                return False
            with self.reading() as ledger:
                return ledger.revisions.target().number == to and self._serves(to)

        self.until(done, command)

    @contextmanager
    def reading(self) -> Iterator[Ledger]:
        with Ledger.open(self.layout.ledger, readonly=True) as ledger:
            yield ledger

    def stop(self) -> int:
        """SIGTERM, as systemd would; the exit status."""
        daemon = self.alive()
        self.until(self.layout.control_socket.exists, "starting")
        daemon = self.alive()
        daemon.terminate()
        code = daemon.wait()
        self.daemon = None
        return code

    # --- what is left --------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything durable that must not depend on where the daemon was killed."""
        layout = self.layout
        with self.reading() as ledger:
            ledger.events.verify_chain()
            heads = ledger.plans.heads()
            return {
                "target": ledger.revisions.target().number,
                "revisions": [
                    (r.number, r.parent, r.lineage, r.served_name) for r in ledger.revisions.all()
                ],
                "plans": [(h.id, h.kind, h.state, h.facts, h.replays, h.seed) for h in heads],
                "batches": [
                    (b.name, b.accepted, b.quarantined, ledger.batches.state(b.id))
                    for b in ledger.batches.latest()
                ],
                "facts": ledger.db.rows("SELECT id, state, validity, tries, learnt FROM facts"),
                "leases": ledger.steps.leases(),
                "alias": json.loads(layout.alias.read_text()),
                "inbox": sorted(p.name for p in layout.inbox.iterdir()),
                "receipts": [
                    {k: v for k, v in json.loads(p.read_text()).items() if k in _RECEIPT}
                    for p in sorted(layout.inbox.glob("*.json"))
                ],
                "archive": sorted(p.name for p in layout.archive.iterdir()),
                "adapters": sorted(p.name for p in layout.adapters.iterdir()),
                "served": sorted(p.name for p in layout.served.iterdir()),
            }


_RECEIPT = ("file", "batch", "accepted", "quarantined", "state", "not_learnt", "already_known")


def _listening() -> Any:
    import socket

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock
