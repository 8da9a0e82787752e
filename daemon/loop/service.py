"""The daemon: one loop, its clock, its signals, its socket; everything wired together."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from daemon.base.control import ControlServer
from daemon.children.jobs import Jobs
from daemon.cluster.launching import launchers
from daemon.config.settings import Settings
from daemon.intake.admit import rules_of
from daemon.intake.feeds import Feeds
from daemon.intake.intake import Intake
from daemon.ledger.ledger import Ledger
from daemon.loop import requests
from daemon.loop.beside import Beside
from daemon.loop.boundary import Boundary
from daemon.loop.canary import CanaryRun
from daemon.loop.commands import Commands
from daemon.loop.monitoring import Monitoring
from daemon.loop.nightly import IntegrityGuard, calendar
from daemon.loop.notifying import Notifications
from daemon.loop.receipts import Receipts
from daemon.loop.reconcile import Reconciler
from daemon.loop.retention import Retention
from daemon.loop.rollout import Rollout, replica_views, rest_s
from daemon.loop.room import DiskRoom
from daemon.loop.sharing import Sharing
from daemon.loop.systemd import notify, watchdog_interval_s
from daemon.loop.ticking import Wake, every
from daemon.loop.watching import Watching
from daemon.retraction.workflow import Forgetting
from daemon.serving.servers import Servers
from daemon.training.paraphrasing import Paraphraser
from daemon.views.status import DaemonView, FeedView
from daemon.web.page import Page
from policies.errors import PaloradError
from policies.planning import Clear, Promote, StartCanary, blocked, gathering

INTAKE_BUDGET_S: Final = 0.1
INDEX_AT_ONCE: Final = 250
FEED_TICK_S: Final = 5.0
RECEIPTS_AT_START: Final = 100
RELOADED: Final = ("train", "protection", "gate")

log = structlog.get_logger(__name__)


class Service:
    """One running daemon; `run` returns after SIGTERM or SIGINT."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        servers: Servers,
        *,
        reload: Callable[[], Settings] | None = None,
        jobs: Jobs | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        free_bytes: Callable[[], int] | None = None,
        page: Page | None = None,
    ) -> None:
        """`clock` dates what is stored and tells the calendar; `monotonic` times every pause."""
        self._settings, self._reload = settings, reload
        self._ledger, self._servers = ledger, servers
        self._clock, self._monotonic, self._page = clock, monotonic, page
        self._intake = Intake(
            ledger, settings.layout, settings.intake, monotonic, model_dir=settings.model.path
        )
        self._receipts = Receipts(self._intake, ledger, monotonic)
        self._feeds = Feeds(settings.feeds, ledger, settings.layout, random.random, clock=monotonic)
        self._forgetting = Forgetting(
            ledger, servers.fleet, settings.layout, rules_of(settings.intake), monotonic
        )
        self._guard = IntegrityGuard(ledger, settings, now=clock, clock=monotonic)
        self._canary = CanaryRun(
            ledger, settings.canary, servers.fleet, self._receipts.changed, self.wake, monotonic
        )
        self._rollout = Rollout(ledger, servers.fleet, self._canary.wanted)
        self._sharing = Sharing(
            ledger,
            settings,
            servers.fleet,
            self._rollout,
            serving=lambda: requests.served_dir(ledger, self._settings) is not None,
            busy=lambda: self._reconciler.on_gpu(),  # noqa: PLW0108 - it is made below
            restart=servers.restart,
            now=clock,
            clock=monotonic,
        )
        self._reconciler = self._make_reconciler(jobs or Jobs(launchers(settings)))
        self._boundary = Boundary()
        self._erasing: Beside[None] = Beside()
        free = free_bytes or (lambda: shutil.disk_usage(settings.state_dir).free)
        self._room = DiskRoom(settings.state_dir, free, self._boundary)
        self._retention = Retention(ledger, settings, servers.fleet, self._boundary, clock)
        given = (ledger, self._intake, settings, self._retention, self._guard.accept)
        serving = (ledger, settings, servers.fleet, self._rollout)
        self._monitoring = Monitoring(*serving, wake=self.wake, now=clock, clock=monotonic)
        self._notifications = Notifications(
            ledger, settings, lines=lambda: self.live().troubles, now=clock, clock=monotonic
        )
        self._commands = Commands(
            *given, self._notifications, now=clock, live=self.live, wake=self.wake
        )
        self._watching = Watching(settings.layout.inbox, settings.intake.watch, self.look)
        self._stopping, self._wake = asyncio.Event(), Wake()
        self._scan_until = self._rests_until = monotonic()
        self._server_problem = ""

    def _make_reconciler(self, jobs: Jobs) -> Reconciler:
        settings, fleet = self._settings, self._servers.fleet
        alias, policy = settings.model.alias, settings.paraphrase_policy
        paraphraser = Paraphraser(self._ledger, lambda: fleet.servers[0], alias, policy)
        return Reconciler(
            self._ledger,
            jobs,
            self._rollout,
            settings,
            changed=self._receipts.changed,
            holds=lambda: self._forgetting.holds,
            worded=paraphraser.ready,
            sharing=self._sharing,
            marked=self._canary.marked,
            clock=self._monotonic,
        )

    # --- life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve and learn until SIGTERM or SIGINT; then leave everything resumable."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._ledger.revisions.ensure_base(self._settings.model.name, self._clock())
        await self._guard.begin()
        control = ControlServer(self._settings.layout.control_socket, self._commands.table())
        await control.start()
        if self._page is not None:
            self._page.begin(self._commands.table(), self._intake.rules)
        latest = self._ledger.batches.latest(RECEIPTS_AT_START)
        self._receipts.changed(batch.id for batch in latest)
        self._watching.ensure()
        check, prune = self._settings.daemon.check_at, self._settings.keep.prune_at
        scheduler = calendar((check, self._guard.check), (prune, self._retention.run))
        scheduler.start()
        ticks = [asyncio.create_task(tick) for tick in self._ticks()]
        notify("READY=1")
        log.info("ready", pid_file=str(self._settings.layout.lock))
        try:
            await self._stopping.wait()
        finally:
            notify("STOPPING=1")
            log.info("stopping")
            scheduler.shutdown(wait=False)
            for tick in ticks:
                tick.cancel()
            await asyncio.gather(*ticks, return_exceptions=True)
            self._watching.stop()
            await control.stop()
            if self._page is not None:
                await self._page.stop()
            await self._erasing.stop()
            await self._reconciler.stop(self._settings.daemon.stop_s)
            await self._sharing.stop()
            await self._guard.stop()
            await self._notifications.stop()
            await self._servers.stop()
            log.info("stopped")

    def stop(self) -> None:
        """Stop intake, end children at their checkpoints, leave."""
        self._stopping.set()

    def wake(self) -> None:
        """A command has changed something: serve and tick at once."""
        self.look()
        self._wake.set()

    def look(self) -> None:
        """Look into the inbox at the next tick, and until what rests there is stable."""
        self._scan_until = self._monotonic() + self._settings.intake.stable_s + 2

    def _ticks(self) -> Iterator[Coroutine[None, None, None]]:
        """Everything that comes again and again; a rollback is to wait for nothing but `serve`."""
        tick_s = self._settings.daemon.tick_s
        yield every(tick_s, self.serve, wake=self._wake)
        yield every(tick_s, self.tick, wake=self._wake)
        yield every(self._settings.intake.rescan_s, self.rescan)
        yield from self._guard.ticks()
        yield from self._notifications.ticks()
        yield from self._monitoring.ticks()
        for feed in self._settings.feeds:
            seconds = min(FEED_TICK_S, feed.every_s)
            yield every(seconds, partial(self.poll, feed.name), first_after_s=seconds)
        if watchdog_s := watchdog_interval_s():
            yield every(watchdog_s, self._feed_watchdog, first_after_s=watchdog_s)

    async def _feed_watchdog(self) -> None:
        notify("WATCHDOG=1")

    # --- what the clock calls ------------------------------------------------------------------

    async def tick(self) -> None:
        """Take in what has been dropped, record what was done, begin what is next."""
        if not self._room.is_there():
            return
        if self._erasing.under_way:
            await self._boundary.run("forgetting", self._erasing.outcome)
            return
        if self._intake.busy or self._monotonic() < self._scan_until:
            await self._boundary.run("intake", self._take_in)
        await self._boundary.run("work", self._reconcile)
        await self._boundary.run("forgetting", self._forget)

    async def rescan(self) -> None:
        """Look into the inbox although no event came; tell what could not be told before."""
        self._receipts.again()
        self._watching.ensure()
        if self._page is not None:
            self._page.ensure()
        self._scan_until = max(self._scan_until, self._monotonic() + 1)

    async def _take_in(self) -> None:
        if self._intake.step(self._clock(), INTAKE_BUDGET_S):
            self.look()

    async def poll(self, feed: str) -> None:
        """Ask a feed if it is due; failures rest with it and show in the status."""
        if self._room.is_there() and self._feeds.is_due(feed):
            await self._boundary.run(f"feed {feed}", lambda: self._poll(feed))

    async def _poll(self, feed: str) -> None:
        if (await self._feeds.poll_one(feed, self._clock())).status == "new":
            self.look()

    async def _reconcile(self) -> None:
        action = await self._reconciler.tick(self._clock())
        if isinstance(action, Promote | StartCanary | Clear):
            self._wake.set()
        self._receipts.write()
        if action is None and not self._intake.busy:
            self._ledger.text.index(INDEX_AT_ONCE)

    async def _forget(self) -> None:
        now = self._clock()
        busy = self._intake.busy or self._reconciler.beginning.under_way
        busy = busy or bool(self._ledger.steps.leases() or self._ledger.admission.admitting())
        step = self._forgetting.step(now, settled=self._rollout.settled, busy=busy)
        await self._erasing.begin(step)

    async def serve(self) -> None:
        """Start the server where that is ours to do, and bring it to the target."""
        await self._boundary.run("server", self._serve)

    async def _serve(self) -> None:
        if self._sharing.away:
            await self._sharing.watch()
            return
        model_dir = requests.served_dir(self._ledger, self._settings)
        if model_dir is None:
            return
        await self._servers.start(model_dir)
        if self._servers.problem != self._server_problem:
            self._server_problem = self._servers.problem
            if self._server_problem:
                log.warning("server", line=self._server_problem)
        if self._rollout.settled and self._monotonic() < self._rests_until:
            return
        began = self._monotonic()
        ensured = await self._rollout.serve(self._clock())
        await self._canary.step(self._clock())
        self._sharing.look()
        ended = self._monotonic()
        self._rests_until = ended + rest_s(ended - began, done=ensured.done)

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
        if self._page is not None:
            self._page.use(self._settings)
        waits = sorted({*changed} - {*taken})
        log.info("settings reloaded", taken=sorted(taken), needs_restart=waits)

    def live(self) -> DaemonView:
        """What only the running daemon knows."""
        now = self._clock()
        stored = self._ledger.planning.snapshot(now, requests.limits_of(self._settings))
        snapshot = self._reconciler.waits.counted(stored, now)
        gathered = None if snapshot.open else gathering(snapshot, now)
        stuck = blocked(snapshot) or ""
        shared = "" if self._sharing.problem else self._sharing.waits_for
        return DaemonView(
            pid=os.getpid(),
            server=self._settings.server.kind,
            replicas=replica_views(self._servers.fleet.statuses, self._ledger.revisions.target()),
            feeds=tuple(
                FeedView(**pulse.model_dump(exclude={"due"}), name=name, due_in_s=seconds)
                for name, pulse, seconds in self._feeds.pulses()
            ),
            progress=self._reconciler.progress(),
            blocked=(stuck if snapshot.paused else "") or gathered or "",
            trouble=(
                *self._boundary.trouble,
                *self._servers.trouble,
                *self._intake.problems,
                *self._feeds.problems,
                *self._guard.trouble,
                *(self._page.trouble if self._page else ()),
                *self._notifications.trouble,
                *self._monitoring.trouble,
                *filter(None, (self._sharing.problem, self._reconciler.waits_for)),
                *filter(None, (self._forgetting.waits_for, "" if snapshot.paused else stuck)),
            ),
            canary=self._canary.view(),
            waits=tuple(filter(None, (shared, self._forgetting.under_way, self._canary.line))),
        )
