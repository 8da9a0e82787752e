"""The service: its clock, its hints and its log, and what it asks the live model."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast
from unittest import mock

import httpx
import structlog
import uvicorn

from daemon.children.jobs import JobState
from daemon.cluster.ray_cluster import connect
from daemon.config.settings import Settings
from daemon.ledger.database import Database
from daemon.ledger.ledger import Ledger
from daemon.loop import service as services
from daemon.loop import start
from daemon.loop.nightly import IntegrityGuard
from daemon.loop.preflight import prepare_state
from daemon.loop.service import Service
from daemon.serving.servers import Servers
from daemon.web import page as pages
from policies.gate.records import Outcome
from policies.records import Batch
from tests.config.effects import Effect
from tests.config.effects.learning import capitals
from tests.support.admitting import admit
from tests.support.evaluating import right
from tests.support.scripted import ScriptedServer
from tests.support.world import START, FakeFleet, FakeJobs, report_for


class Asked(FakeFleet):
    """A fleet whose first replica is a scripted model."""

    def __init__(self, alias: str) -> None:
        super().__init__()
        self.servers = [ScriptedServer({alias: right})]


class NoServers:
    """Servers that only remember over which model they were started."""

    problem, trouble = "", ()

    def __init__(self, settings: Settings) -> None:
        self.fleet = Asked(settings.model.alias)
        self.started: list[Path] = []

    async def start(self, model_dir: Path) -> None:
        self.started.append(model_dir)

    async def restart(self) -> bool:
        return False

    async def stop(self) -> None: ...


class Here:
    """A service over an empty ledger, with children and servers that do not exist."""

    def __init__(self, settings: Settings, root: Path) -> None:
        prepare_state(settings)
        self.settings = settings
        self.ledger = Ledger(Database.in_memory(root / "ledger.db"))
        self.ledger.revisions.ensure_base(settings.model.name, START)
        self.jobs, self.servers = FakeJobs(), NoServers(settings)
        self.service = Service(
            settings,
            self.ledger,
            cast(Servers, self.servers),
            jobs=self.jobs,
            clock=lambda: START,
            free_bytes=lambda: 1 << 40,
        )


def served(settings: Settings, root: Path) -> object:
    """The model over which the server is started."""
    here = Here(settings, root)
    asyncio.run(here.service.serve())
    return here.servers.started


def paraphrased(settings: Settings, root: Path) -> object:
    """What the live model is asked before the first plan is trained."""
    here = Here(settings, root)
    batch = Batch(id="b", name="b", received_at=START, source="x", accepted=0, quarantined=0)
    admit(here.ledger, batch, capitals(0, 6))

    async def run() -> None:
        for _ in range(10):
            await here.service.tick()
            for workdir, request in list(here.jobs.requests.items()):
                report = report_for(request, root, Outcome.PASS, lambda _: False)
                if here.jobs.started[-1][0] == "probe":
                    here.jobs.outcomes[workdir] = JobState(
                        "finished", report=report.model_dump(mode="json")
                    )

    asyncio.run(run())
    assert here.jobs.started[-1][0] == "train"
    return sorted(prompt for _, prompt in here.servers.fleet.servers[0].asked)


def run(settings: Settings, root: Path) -> object:
    """What a running service repeats and how often, what gives hints, and its daily check."""
    here, repeated = Here(settings, root), []
    ensure, calendar = services.Watching.ensure, services.calendar

    def every(seconds: float, work: Any, **_: object) -> Coroutine[None, None, None]:
        name = getattr(work, "__name__", "") or work.func.__name__
        repeated.append((name, seconds))
        return asyncio.sleep(0)

    seen: list[object] = []

    def watched(watching: services.Watching) -> None:
        ensure(watching)
        seen.append(type(watching._observer).__name__)

    def scheduled(*arguments: Any) -> Any:
        scheduler = calendar(*arguments)
        seen.append([job.trigger.get_next_fire_time(None, START) for job in scheduler.get_jobs()])
        return scheduler

    async def live() -> None:
        asyncio.get_running_loop().call_later(0.05, here.service.stop)
        await here.service.run()

    with (
        mock.patch.object(services, "every", every),
        mock.patch.object(services.Watching, "ensure", watched),
        mock.patch.object(services, "calendar", scheduled),
        mock.patch.object(services, "ControlServer", return_value=mock.AsyncMock()),
        mock.patch.object(here.service._reconciler, "stop", mock.AsyncMock()) as stop,
    ):
        asyncio.run(live())
    return repeated, seen, stop.await_args


def launched(settings: Settings, root: Path) -> object:
    """With which arguments the child that trains is started."""
    here, workdir = Here(settings, root), settings.layout.workdir(1, "train")
    workdir.mkdir(parents=True)
    made = Service(settings, here.ledger, cast(Servers, here.servers), clock=lambda: START)
    with mock.patch.object(subprocess, "Popen") as popen:
        made._reconciler._jobs.start("train", workdir)
    return popen.call_args.args[0][2:]


def submitted(settings: Settings, root: Path) -> object:
    """Which cluster is asked, and for what."""
    ray = mock.Mock()
    ray.exceptions.RayError = RuntimeError
    with (
        mock.patch.dict(sys.modules, {"ray": ray}),
        mock.patch.object(socket, "create_connection"),
    ):
        cluster = connect(settings.train.ray, mock.Mock())
        for step in ("train", "evaluate"):
            cluster.submit(step, settings.layout.workdir(1, step) / "attempts" / "0001")
    return ray.init.call_args, ray.remote.return_value.options.call_args_list


def sent_out(settings: Settings, root: Path) -> object:
    """Where the signed head of the history goes."""
    here = Here(settings, root)
    here.ledger.meta.pause(True, "a test", START)
    guard = IntegrityGuard(here.ledger, settings, now=lambda: START, clock=lambda: 0.0)
    guard._keeper.accept("a test", START)
    posted = mock.AsyncMock(return_value=httpx.Response(200))
    with mock.patch.object(httpx.AsyncClient, "post", posted):
        asyncio.run(guard.send(at_once=True))
    file = settings.anchor.file
    return guard.trouble, [call.args for call in posted.await_args_list], file and file.exists()


def logged(settings: Settings, root: Path) -> object:
    """The levels that a started daemon writes to its log."""

    async def body(*_: object) -> None:
        log = structlog.get_logger()
        log.debug("fine")
        log.info("coarse")

    said = io.StringIO()
    before = structlog.get_config()
    try:
        with (
            contextlib.redirect_stderr(said),
            mock.patch.object(start, "_run", body),
            mock.patch.object(start, "require_files"),
        ):
            start.run(settings)
    finally:
        structlog.configure(**before)
    return [word for word in ("fine", "coarse") if word in said.getvalue()]


def paged(settings: Settings, root: Path) -> object:
    """The page of a started daemon: where it listens, and whose token opens it."""
    prepare_state(settings)
    with mock.patch.object(start, "Service") as service:
        service.return_value.run = mock.AsyncMock()
        asyncio.run(start._run(settings, mock.Mock(), None))
    page = service.call_args.kwargs["page"]
    if page is None:
        return None

    async def begin() -> None:
        page.begin({}, mock.Mock())
        await page.stop()

    with (
        mock.patch.object(pages, "_listening") as listening,
        mock.patch.object(uvicorn.Server, "run"),
    ):
        asyncio.run(begin())
    return listening.call_args, settings.layout.operator_key.exists()


def token(root: Path) -> str:
    (root / "token").write_text("0123456789abcdef\n")
    return "token"


TWO = {"intake.model_paraphrases": 2}
EFFECTS: dict[str, Effect] = {
    "model.path": Effect(served, "another"),
    "intake.rescan_s": Effect(run, 60.0),
    "intake.watch": Effect(run, "off"),
    "intake.model_paraphrases": Effect(paraphrased, 2),
    "intake.model_paraphrase_budget": Effect(paraphrased, 6, TWO),
    "daemon.tick_s": Effect(run, 2.0),
    "daemon.stop_s": Effect(run, 5.0),
    "daemon.log_level": Effect(logged, "debug"),
    "daemon.check_at": Effect(run, "30 4 * * *"),
    "train.launcher": Effect(launched, "ray"),
    "train.ray.address": Effect(submitted, "gpu1:6379"),
    "train.ray.num_cpus": Effect(submitted, 8),
    "train.ray.num_gpus": Effect(submitted, 0),
    "web.enabled": Effect(paged, False),
    "web.host": Effect(paged, "::1"),
    "web.port": Effect(paged, 8711),
    "web.token_file": Effect(paged, token),
    "anchor.file": Effect(sent_out, "heads.jsonl"),
    "anchor.webhook": Effect(sent_out, "https://example.org/heads"),
}
