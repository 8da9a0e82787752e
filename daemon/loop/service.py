"""The daemon: one loop, its clock, its signals, its socket; everything wired together."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

from daemon.base.control import ControlServer
from daemon.children.jobs import Jobs
from daemon.config.settings import Settings
from daemon.intake.admit import rules_of
from daemon.intake.feeds import Feeds
from daemon.intake.intake import Intake
from daemon.ledger.ledger import Ledger
from daemon.loop import requests
from daemon.loop.commands import Commands
from daemon.loop.instance import single_instance
from daemon.loop.preflight import prepare_state, require_files, require_own_modules
from daemon.loop.reconcile import Reconciler
from daemon.loop.systemd import notify, watchdog_interval_s
from daemon.retraction.workflow import Forgetting
from daemon.serving.servers import Servers
from daemon.training.paraphrasing import Paraphraser
from daemon.views.status import LiveView, ReplicaView
from policies.errors import LedgerBusy, PaloradError
from policies.facts.paraphrases import ERASURE_TEMPLATES
from policies.planning import blocked, gathering

INTAKE_BUDGET_S: Final = 0.1
INDEX_AT_ONCE: Final = 250
FEED_TICK_S: Final = 5.0
RECEIPTS_AT_START: Final = 100
LOW_DISK_BYTES: Final = 64 * 2**20
SETTLED_SERVE_S: Final = 2.0
GRACE_S: Final = 3600
RELOADED: Final = ("train", "protection", "gate")

log = structlog.get_logger(__name__)


class Service:
    """One running daemon; `run` returns when it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        servers: Servers,
        *,
        reload: Callable[[], Settings] | None = None,
        jobs: Jobs | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._servers = servers
        self._reload = reload
        self._clock = clock
        self._free_bytes = free_bytes or (lambda: shutil.disk_usage(settings.state_dir).free)
        self._intake = Intake(
            ledger, settings.layout, settings.intake, model_dir=settings.model.path
        )
        self._feeds = Feeds(settings.feeds, ledger, settings.layout, random.random)
        self._forgetting = Forgetting(
            ledger, servers.fleet, settings.layout, rules_of(settings.intake), ERASURE_TEMPLATES
        )
        self._reconciler = Reconciler(
            ledger,
            jobs or Jobs(),
            servers.fleet,
            settings,
            changed=self._tell_receipts,
            holds=lambda: self._forgetting.holds,
            worded=Paraphraser(
                ledger,
                lambda: servers.fleet.servers[0],
                settings.model.alias,
                settings.paraphrase_policy,
            ).ready,
        )
        self._commands = Commands(
            ledger, self._intake, settings, now=clock, live=self.live, wake=self.wake
        )
        self._stopping = asyncio.Event()
        self._scan_until = clock()
        self._served_at: datetime | None = None
        self._trouble: dict[str, str] = {}
        self._server_problem = ""

    # --- life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve and learn until SIGTERM or SIGINT; then leave everything resumable."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._ledger.ensure_base(self._settings.model.name, self._clock())
        control = ControlServer(self._settings.layout.control_socket, self._commands.table())
        await control.start()
        self._tell_receipts(tuple(batch.id for batch in self._ledger.batches(RECEIPTS_AT_START)))
        observer = self._observe(loop)
        scheduler = self._schedule()
        scheduler.start()
        notify("READY=1")
        log.info("ready", pid_file=str(self._settings.layout.lock))
        try:
            await self._stopping.wait()
        finally:
            notify("STOPPING=1")
            log.info("stopping")
            scheduler.shutdown(wait=False)
            if observer is not None:
                observer.stop()
            await control.stop()
            await self._reconciler.stop(self._settings.daemon.stop_s)
            await self._servers.stop()
            log.info("stopped")

    def stop(self) -> None:
        """Stop intake, end children at their checkpoints, leave."""
        self._stopping.set()

    def wake(self) -> None:
        """Look into the inbox at the next tick, and until what rests there is stable."""
        rest = timedelta(seconds=self._settings.intake.stable_s + 2)
        self._scan_until = self._clock() + rest

    def _schedule(self) -> AsyncIOScheduler:
        scheduler = AsyncIOScheduler(
            timezone=UTC,
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": GRACE_S},
        )
        tick_s = self._settings.daemon.tick_s
        for job, seconds in (
            (self.tick, tick_s),
            (self.serve, tick_s),
            (self.rescan, self._settings.intake.rescan_s),
        ):
            scheduler.add_job(job, "interval", seconds=seconds, next_run_time=self._clock())
        for feed in self._settings.feeds:
            seconds = min(FEED_TICK_S, feed.every_s)
            scheduler.add_job(self.poll, "interval", [feed.name], seconds=seconds)
        if watchdog_s := watchdog_interval_s():
            scheduler.add_job(self._feed_watchdog, "interval", seconds=watchdog_s)
        return scheduler

    def _observe(self, loop: asyncio.AbstractEventLoop) -> BaseObserver | None:
        """Events of the inbox as a hint; the scan finds everything without them, only later."""
        watch = self._settings.intake.watch
        if watch == "off":
            return None
        observer: BaseObserver = PollingObserver() if watch == "polling" else Observer()
        wake = self.wake

        class Hint(FileSystemEventHandler):
            def on_any_event(self, _event: object) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(wake)

        observer.schedule(Hint(), str(self._settings.layout.inbox))
        try:
            observer.start()
        except OSError as error:
            log.warning("no events from the inbox; it is scanned", reason=str(error))
            return None
        return observer

    async def _feed_watchdog(self) -> None:
        notify("WATCHDOG=1")

    # --- what the clock calls ------------------------------------------------------------------

    async def tick(self) -> None:
        """Take in what has been dropped, record what was done, begin what is next."""
        if not self._room():
            return
        now = self._clock()
        if self._intake.busy or now < self._scan_until:
            await self._guarded("intake", self._take_in)
        await self._guarded("work", self._reconcile)
        await self._guarded("forgetting", self._forget)

    async def rescan(self) -> None:
        """Look into the inbox although no event came."""
        self._scan_until = max(self._scan_until, self._clock() + timedelta(seconds=1))

    async def _take_in(self) -> None:
        if self._intake.step(self._clock(), INTAKE_BUDGET_S):
            self.wake()

    async def poll(self, feed: str) -> None:
        """Ask a feed if it is due; failures rest with it and show in the status."""
        now = self._clock()
        if self._room() and self._feeds.is_due(feed, now):
            await self._guarded(f"feed {feed}", lambda: self._poll(feed, now))

    async def _poll(self, feed: str, now: datetime) -> None:
        if (await self._feeds.poll_one(feed, now)).status == "new":
            self.wake()

    async def _reconcile(self) -> None:
        action = await self._reconciler.tick(self._clock())
        if action is None and not self._intake.busy:
            self._ledger.index_text(INDEX_AT_ONCE)

    async def _forget(self) -> None:
        now = self._clock()
        busy = self._intake.busy or bool(self._ledger.leases() or self._ledger.admitting())
        try:
            await self._forgetting.step(now, settled=self._reconciler.settled, busy=busy)
        except Exception:
            self._forgetting.failed(now)
            raise

    async def serve(self) -> None:
        """Start the server where that is ours to do, and bring it to what is target."""
        await self._guarded("server", self._serve)

    async def _serve(self) -> None:
        now = self._clock()
        model_dir = self._model_dir()
        if model_dir is None:
            return
        await self._servers.start(model_dir)
        if self._servers.problem != self._server_problem:
            self._server_problem = self._servers.problem
            if self._server_problem:
                log.warning("server", line=self._server_problem)
        pause = timedelta(seconds=SETTLED_SERVE_S)
        if self._reconciler.settled and self._served_at and now < self._served_at + pause:
            return
        await self._reconciler.serve(now)
        self._served_at = self._clock()

    def _model_dir(self) -> Path | None:
        if self._settings.probe.serve == "base":
            return self._settings.model.path
        probe = requests.remembered_probe(self._ledger, self._settings)
        return None if probe is None else probe.served_dir

    async def _guarded(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """The step boundary: nothing that goes wrong in one tick ends the daemon."""
        try:
            await work()
        except LedgerBusy as error:
            log.info("ledger busy", what=what, reason=str(error))
        except PaloradError as error:
            self._say(what, str(error))
        except Exception as error:
            log.exception("unexpected", what=what)
            self._say(what, f"{what}: unexpected {type(error).__name__}: {error}; see the log")
        else:
            self._trouble.pop(what, None)

    def _say(self, what: str, line: str) -> None:
        if self._trouble.get(what) != line:
            log.warning("trouble", what=what, line=line)
        self._trouble[what] = line

    def _room(self) -> bool:
        """Whether there is room to go on; without it nothing is taken in or begun."""
        free = self._free_bytes()
        if free >= LOW_DISK_BYTES:
            self._trouble.pop("disk", None)
            return True
        self._say(
            "disk",
            f"{self._settings.state_dir}: only {free // 2**20} MB are free; intake and learning "
            "pause until there is room",
        )
        return False

    def _tell_receipts(self, batches: tuple[str, ...]) -> None:
        for batch in batches:
            try:
                self._intake.update_receipt(batch, self._ledger.missed(batch))
            except OSError as error:
                log.warning("receipt not updated", batch=batch, reason=str(error))

    # --- signals and status --------------------------------------------------------------------

    def reload(self) -> None:
        """SIGHUP: take over what can change while running, and say what cannot."""
        if self._reload is None:
            log.warning("settings cannot be reloaded here; restart the daemon")
            return
        try:
            fresh = self._reload()
        except PaloradError as error:
            log.error("settings not reloaded", reason=str(error))
            return
        changed = [
            name
            for name in Settings.model_fields
            if getattr(fresh, name) != getattr(self._settings, name)
        ]
        taken = {name: getattr(fresh, name) for name in changed if name in RELOADED}
        self._settings = self._settings.model_copy(update=taken)
        self._reconciler.settings = self._settings
        self._commands.settings = self._settings
        waits = [name for name in changed if name not in RELOADED]
        log.info("settings reloaded", taken=sorted(taken), needs_restart=waits)

    def live(self) -> LiveView:
        """What only the running daemon knows."""
        snapshot = self._ledger.snapshot(self._clock(), requests.limits_of(self._settings))
        gathered = None if snapshot.open else gathering(snapshot, self._clock())
        target = self._ledger.target().served_name
        waits = (self._reconciler.waits_for, self._forgetting.waits_for)
        return LiveView(
            pid=os.getpid(),
            server=self._settings.server.kind,
            replicas=tuple(
                ReplicaView(
                    url=status.url,
                    ready=status.healthy and status.active == target,
                    target=target,
                    active=status.active,
                    verified_at=status.verified_at,
                    reason=status.reason,
                )
                for status in self._servers.fleet.statuses
            ),
            step=self._reconciler.progress(),
            blocked=blocked(snapshot) or gathered or "",
            trouble=(
                *self._trouble.values(),
                *self._servers.trouble,
                *self._intake.problems,
                *self._feeds.problems,
                *(wait for wait in waits if wait),
            ),
        )


def run(settings: Settings, reload: Callable[[], Settings] | None = None) -> int:
    """Be the daemon until told to stop; 0 then. Raises `PaloradError` where it cannot start.

    `reload` reads the settings afresh at SIGHUP.
    """
    require_own_modules()
    require_files(settings)
    prepare_state(settings)
    configure_log(settings.daemon.log_level)
    with single_instance(settings.layout.lock), Ledger.open(settings.layout.ledger) as ledger:
        asyncio.run(_run(settings, ledger, reload))
    return 0


async def _run(settings: Settings, ledger: Ledger, reload: Callable[[], Settings] | None) -> None:
    await Service(settings, ledger, Servers(settings), reload=reload).run()


def configure_log(level: str) -> None:
    """One line an event on standard error: for people on a terminal, JSON for everything else."""
    chosen = getattr(logging, level.upper())
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # Its only warning is that a job still runs when it is due again, which is how it is meant.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(chosen),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
