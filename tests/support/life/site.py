"""The real service over a real ledger, store and intake, in a machine that a test can break.

One process plays them all: the daemon (its loop is turned by hand), its children, the servers, and
the disk below them. Both clocks are the test's. Death comes as an exception that nothing catches.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from daemon.base import faults
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop import beside
from daemon.loop.preflight import prepare_state
from daemon.loop.service import Service
from daemon.serving import pointer
from daemon.serving.alias import AdminGateway
from daemon.serving.client import HttpServer
from daemon.serving.replicas import fleet
from daemon.serving.servers import Servers
from policies.gate.records import Outcome
from policies.records import OPEN_STATES
from tests.support.life.children import LocalJobs, Told, World, work
from tests.support.life.engine import Engine
from tests.support.life.settings import small_settings
from tests.support.life.volatile import Volatile

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
STARTS_AT_MOST = 6
Result = TypeVar("Result")


class Killed(BaseException):
    """The process ends here; `power` takes the whole machine with it."""

    def __init__(self, power: bool = False) -> None:
        super().__init__("killed")
        self.power = power


class Wired(Servers):
    """Servers whose connections lead to engines of this process."""

    def __init__(self, settings: Settings, engines: tuple[Engine, ...]) -> None:
        super().__init__(settings)
        key = settings.layout.admin_key.read_text().strip()
        self._clients = tuple(
            HttpServer(engine.url, admin_key=key, transport=engine.transport) for engine in engines
        )
        self.fleet = fleet(settings, self._clients)


class Site:
    """A state directory, a daemon that lives most of the time, two replicas, and the weather."""

    def __init__(self, root: Path) -> None:
        self.root = root
        model = root / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        self.settings = small_settings(root)
        self.layout = self.settings.layout
        self.seconds, self.wrong_by = 1000.0, timedelta(0)
        self.full = False
        gateway = AdminGateway(self.layout.alias, self.layout.admin_key, self.layout.served)
        self.engines = tuple(Engine(gateway, f"http://replica-{n}") for n in range(2))
        for engine in self.engines:
            engine.heard = self._asked
        self.world = World(self._loaded)
        self.at_call: tuple[int, Callable[[], None]] | None = None
        self.at_request: tuple[int, Callable[[], Awaitable[None]]] | None = None
        self.service: Service | None = None
        self.deaths = 0
        self._dead, self._safe = False, True
        self.flips: set[int] = set()  # to what was target at that moment
        self.wrong_flips: list[tuple[int, int]] = []
        self._copy = root / "ledger-before"
        self._looked_at = 0.0
        (root / "state").mkdir()
        self.disk = Volatile(root / "state", spared=lambda name: name.startswith("ledger.db"))
        self.disk.__enter__()
        self.disk.settle()
        self.disk.heard = self._call
        self._point, faults.point = faults.point, self._call
        # The loop is turned by hand: how long a thread takes must not decide what happens.
        self._moment, beside.AT_ONCE_S = beside.AT_ONCE_S, 3600.0
        self.start()

    def close(self) -> None:
        """Give everything back."""
        self.at_call = self.at_request = None
        try:
            self._end()
            for child in self.world.running():
                child.kill()
        finally:
            faults.point, beside.AT_ONCE_S = self._point, self._moment
            self.disk.__exit__()

    # --- clocks --------------------------------------------------------------------------------

    def now(self) -> datetime:
        """What the wall clock says."""
        return START + timedelta(seconds=self.seconds) + self.wrong_by

    def monotonic(self) -> float:
        """Seconds that nobody sets; looking costs half a millisecond."""
        self.seconds += 0.0005
        return self.seconds

    # --- life and death ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon; dying meanwhile, it is started again."""
        for _ in range(STARTS_AT_MOST):
            try:
                self._begin()
            except Killed as death:
                self._die(death.power)
            else:
                return
        raise AssertionError("the daemon does not start")

    def _begin(self) -> None:
        self._dead = False
        self.loop = asyncio.new_event_loop()
        prepare_state(self.settings)
        self.ledger = Ledger.open(self.layout.ledger)
        # Some builds of SQLite blank what they free; nothing may rest on that.
        self.ledger.db.connection.execute("PRAGMA secure_delete=OFF")
        self._safe = _keeps_commits(self.ledger.db.connection)
        self._remember_ledger()
        self.service = Service(
            self.settings,
            self.ledger,
            Wired(self.settings, self.engines),
            jobs=LocalJobs(self.world),
            clock=self.now,
            monotonic=self.monotonic,
            free_bytes=lambda: 0 if self.full else 2**40,
        )
        self.ledger.revisions.ensure_base(self.settings.model.name, self.now())
        self.loop.run_until_complete(self.service._guard.begin())
        latest = self.ledger.batches.latest(100)
        self.service._receipts.changed(batch.id for batch in latest)
        self.service.look()

    def _end(self) -> None:
        """Nothing of the process does anything any more."""
        self._dead = True
        loop = self.loop
        if not loop.is_closed():
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                with suppress(BaseException):
                    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
        if hasattr(self, "ledger"):
            self.ledger.close()

    def _die(self, power: bool, linger: bool = False) -> None:
        self.at_call = self.at_request = None
        self.deaths += 1
        self._end()
        if not linger:
            for child in self.world.running():
                child.kill()
        self._dead = False
        if power:
            self._cut()

    def _cut(self) -> None:
        for engine in self.engines:
            engine.kill()
        heard, self.disk.heard = self.disk.heard, lambda _name: None
        self.disk.cut(random.Random(self.deaths))
        self.disk.heard = heard
        if not self._safe and self._copy.exists():
            for left in self.layout.root.glob("ledger.db-*"):
                left.unlink()
            self.layout.ledger.write_bytes(self._copy.read_bytes())
        for engine in self.engines:
            engine.start()

    def crash(self, power: bool, linger: bool = False) -> None:
        """Between two steps: the daemon is killed with its children, or the power goes."""
        self._die(power, linger=linger and not power)
        self.start()

    def do(self, step: Callable[[], Coroutine[Any, Any, Result]]) -> Result | None:
        """One step of the daemon; None where it died over it (and was started again)."""
        try:
            return self.loop.run_until_complete(step())
        except Killed as death:
            self._die(death.power)
            self.start()
            return None
        finally:
            self.at_call = self.at_request = None

    # --- hooks ---------------------------------------------------------------------------------

    def _call(self, name: str) -> None:
        if self._dead:
            raise Killed
        if name == "serve:flipped":
            self._look_at_the_flip()
        if not self._safe and name.endswith(":before"):
            self._remember_ledger()
        if self.at_call is not None:
            left, act = self.at_call
            self.at_call = (left - 1, act) if left > 0 else None
            if left <= 0:
                act()

    def _look_at_the_flip(self) -> None:
        said = pointer.read(self.layout.alias)
        target = self.ledger.revisions.target().number
        if said is not None and said.revision != target:
            self.wrong_flips.append((said.revision, target))
        self.flips.add(target)

    async def _asked(self, _path: str) -> None:
        if self.at_request is not None:
            left, act = self.at_request
            self.at_request = (left - 1, act) if left > 0 else None
            if left <= 0:
                await act()

    def _remember_ledger(self) -> None:
        """What the ledger would hold if the last commit were lost."""
        if not self._safe and self.layout.ledger.exists():
            self._copy.write_bytes(self.layout.ledger.read_bytes())

    # --- what the daemon does ------------------------------------------------------------------

    def tick(self, seconds: float, *, serves: bool = True) -> None:
        """Time passes, and all that comes again and again comes once."""
        self.seconds += seconds
        service = self._service
        if self.seconds - self._looked_at >= self.settings.intake.rescan_s:
            self._looked_at = self.seconds
            self.do(service.rescan)
        self.do(self._service.tick)
        self.do(self._service._guard.sign)
        if serves:
            self.serve()

    def tick_beside(self, seconds: float, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A tick, and what somebody does right after it has decided and before it has begun."""
        self.seconds += seconds

        async def both() -> None:
            other = asyncio.ensure_future(act())
            await self._service.tick()
            await other

        self.do(both)

    def serve(self) -> None:
        self.do(self._service.serve)

    @property
    def _service(self) -> Service:
        assert self.service is not None
        return self.service

    @property
    def trouble(self) -> tuple[str, ...]:
        return self._service._boundary.trouble

    def verified(self) -> tuple[str, ...]:
        """What is found where everything stored is compared with its hashes."""
        self.do(self._service._guard.check)
        return self._service._guard.trouble

    def prune(self) -> None:
        """What the calendar asks for at night."""
        self.do(self._service._retention.run)

    def command(self, name: str, **arguments: Any) -> Any:
        """What a person asks of the running daemon; raises what it is refused with."""

        async def asked() -> Any:
            return await self._service._commands.table()[name](**arguments)

        return self.do(asked)

    def finish(self, told: Told) -> None:
        """The running child does its work; it may be killed over it."""
        running = self.world.running()
        if not running:
            return
        try:
            work(self.world, running[0], told, over=self._over(running[0].plan))
        except Killed as death:
            if death.power:
                self._die(True)
                self.start()
            else:
                running[0].kill()
        except OSError:
            running[0].end(1)
        finally:
            self.at_call = None

    def _over(self, plan: int) -> bool:
        return plan > 0 and self.ledger.plans.head(plan).state not in OPEN_STATES

    def settle(self, limit: int = 300) -> None:
        """All faults are over: nothing is left to do after a while, or it raises."""
        self.full = False
        for engine in self.engines:
            engine.garbles = engine.cut_off = False
            if engine.garbled or not engine.up:
                engine.kill()
                engine.start()
        idle = 0
        for _ in range(limit):
            self.tick(61.0)
            self.finish(Told(Outcome.PASS))
            idle = 0 if self.working() else idle + 1
            if idle == 4:
                return
        raise AssertionError(f"does not come to rest: {self.working()}; {self.trouble}")

    def working(self) -> str:
        """What is under way, if anything is."""
        ledger = self.ledger
        opened = ledger.plans.open_plan()
        if opened is not None:
            return f"plan {opened.id} is {opened.state.value}: {opened.error}"
        if ledger.steps.leases():
            return "a lease"
        if ledger.admission.admitting() or ledger.admission.admitting(aside=True):
            return "a batch is being admitted"
        if ledger.retractions.erasable() or ledger.erasure.unclean:
            return f"a retraction: {self._service._forgetting.waits_for}"
        if not self._service._rollout.settled:
            return f"serving: {[s.reason for s in self._service._servers.fleet.statuses]}"
        return ""

    def _loaded(self, name: str) -> str | None:
        first = self.engines[0]
        found = first.weights.get(name) if first.up else None
        return None if found is None else found.sha256


def _keeps_commits(connection: sqlite3.Connection) -> bool:
    """Whether a commit that was acknowledged survives a power cut (SQLite's documentation)."""
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    (level,) = connection.execute("PRAGMA synchronous").fetchone()
    return bool(level >= (2 if mode == "wal" else 3))
