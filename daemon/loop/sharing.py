"""One GPU for serving and training: room is made before a child trains, and given back after."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog

from daemon.base import faults
from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop.coresident import AGAIN_S, Coresident, Refusals, subject
from daemon.loop.rollout import Rollout
from daemon.serving import gpu, pointer
from daemon.serving.client import HttpServer
from daemon.serving.replica_status import ReplicaStatus
from policies.errors import PaloradError, ServerUnreachable
from policies.gpu_sharing import AWAY, Seen, SharingPhase, next_phase
from policies.planning import Step

ON_GPU: Final = frozenset({Step.PROBE, Step.TRAIN})
RETRY_S: Final = 5.0
WAKE_TRIES: Final = 3
OBSERVE_S: Final = 2.0
STOP_S: Final = 40.0

log = structlog.get_logger(__name__)


class Sleepers(Protocol):
    """What is needed of `daemon.serving.fleet.Fleet`."""

    servers: Sequence[HttpServer]

    @property
    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """What was seen last."""
        ...

    async def observe(self) -> tuple[ReplicaStatus, ...]:
        """Ask every replica what it serves."""
        ...


class Separate:
    """Training has a device of its own."""

    def awake(self) -> bool:
        """The servers never sleep."""
        return True

    def keeps(self, plan: int) -> bool:
        """The servers never sleep for another plan."""
        return True

    async def room(self, plan: int, step: Step) -> bool:
        """There is always room."""
        return True


class Sharing:
    """Makes room on the GPU as `server.gpu_sharing` says; `phase` says how the servers stand.

    With "sleep": awake → falling asleep (requests under way are finished) → asleep → a child
    trains → waking, which ends with `Rollout.serve`: nothing is routed before it is verified →
    awake. Nothing of it is stored: a daemon that starts asks the servers, and the ledger's lease
    says for which plan they sleep.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        fleet: Sleepers,
        rollout: Rollout,
        *,
        serving: Callable[[], bool],
        busy: Callable[[], bool],
        restart: Callable[[], Awaitable[bool]] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        level: int | None = None,
    ) -> None:
        """`serving`: whether there is anything to serve yet; `busy`: whether a child computes on
        the GPU; `restart` starts a managed server again, False where there is none. `now` dates
        what is recorded, `clock` times; `level` is vLLM's level of sleep.
        """
        self._ledger = ledger
        self._settings = settings
        self._fleet = fleet
        self._rollout = rollout
        self._serving = serving
        self._busy = busy
        self._restart = restart
        self._wakes = 0
        self._now = now
        self._clock = clock
        self._level = gpu.sleep_level() if level is None else level
        self._refusals = Refusals(clock)
        self._coresident = Coresident(settings, self._refusals)
        leases = (lease for lease in ledger.steps.leases() if lease.step in ON_GPU)
        self._plan = next((lease.plan for lease in leases), None)
        self._task: asyncio.Task[None] | None = None
        self._retry_at = self._observe_at = self._check_at = self._needed_at = clock()
        self.problem = ""
        self.phase = SharingPhase.UNKNOWN

    @property
    def away(self) -> bool:
        """Whether the servers must be left alone: nothing is loaded, verified or routed."""
        return self.phase in AWAY

    @property
    def _uses_sleep(self) -> bool:
        return self._settings.server.gpu_sharing == "sleep"

    # --- what the reconciler asks --------------------------------------------------------------

    def awake(self) -> bool:
        """Whether the servers can be asked; they are woken if they sleep."""
        if self.phase is SharingPhase.ASLEEP and self._task is None:
            self._go(SharingPhase.WAKING)
        return not self.away

    def keeps(self, plan: int) -> bool:
        """Whether this plan may be prepared; servers that sleep for another one are woken first,
        because a plan may ask them before it trains."""
        return plan == self._plan or self.awake()

    async def room(self, plan: int, step: Step) -> bool:
        """Whether a child of this plan may start on the GPU now; if not, what it takes is begun,
        and `waits_for` says what is missing. Never waits for the servers.
        """
        self._needed_at = self._clock()
        self._refusals.asked()
        match self._settings.server.gpu_sharing:
            case "coresident":
                return await self._coresident.fits(plan, step)
            case "sleep":
                return not self._serving() or self._asleep_for(plan)
        return True

    def _asleep_for(self, plan: int) -> bool:
        if self.phase is SharingPhase.ASLEEP and plan == self._plan:
            return True
        if self.phase is SharingPhase.ASLEEP:
            self.awake()
        elif self.away or self._task is not None or self._refusals.resting:
            return False
        elif self.phase is SharingPhase.UNKNOWN or not self._rollout.settled:
            line = f"{subject(plan)} waits until the server answers and is verified"
            self._refusals.refuse(line, again_s=0.0)
        else:
            self._plan = plan
            self._refusals.clear()
            self._go(SharingPhase.FALLING_ASLEEP)
        return False

    def _refuse(self, problem: str) -> None:
        self._retry_at = self._clock() + RETRY_S
        self._refusals.refuse(f"{subject(self._plan)} waits for room on the GPU: {problem}")

    # --- what the service's clock calls --------------------------------------------------------

    async def watch(self) -> None:
        """Look at servers that are away, and go on when it is time."""
        if self._clock() >= self._observe_at:
            self._observe_at = self._clock() + OBSERVE_S
            await self._fleet.observe()
        self.look()

    def look(self) -> None:
        """Do what follows from what the replicas said last."""
        now, busy = self._clock(), self._busy()
        if busy:
            self._needed_at = now
        under_way = self._task is not None and self.phase is not SharingPhase.FALLING_ASLEEP
        if under_way or now < self._retry_at:
            return
        answered = [status.asleep for status in self._fleet.statuses if status.healthy]
        asleep = sum(answered)
        if self.phase is SharingPhase.AWAKE and answered and not asleep:
            self._wakes = 0
        # Between two ticks nobody asks for room.
        idle_s = now - self._needed_at - self._settings.daemon.tick_s
        seen = Seen(asleep, len(answered) - asleep, self._plan is not None, busy, idle_s)
        phase = next_phase(self.phase, seen)
        if phase is not self.phase or phase is SharingPhase.WAKING:
            self._go(phase)
        elif (
            phase is SharingPhase.AWAKE and answered and self._uses_sleep and now >= self._check_at
        ):
            self._begin(self._check)

    def _go(self, phase: SharingPhase) -> None:
        log.info("servers", phase=phase.value, plan=self._plan)
        self.phase = phase
        if phase is SharingPhase.FALLING_ASLEEP:
            self._begin(self._fall_asleep)
        elif phase is SharingPhase.WAKING:
            self._begin(self._wake)

    # --- what takes time -----------------------------------------------------------------------

    def _begin(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.create_task(self._carry_out(work), name=f"servers: {self.phase.value}")

    async def _carry_out(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except PaloradError as error:
            self._failed(str(error))
        except Exception as error:
            log.exception("unexpected", what=f"servers {self.phase.value}")
            self._failed(f"unexpected {type(error).__name__}: {error}; see the log")
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    def _failed(self, problem: str) -> None:
        if self.phase is SharingPhase.FALLING_ASLEEP:
            self._refuse(problem)
            # Whoever sleeps already is woken, but never beside a child.
            self.phase = SharingPhase.ASLEEP if self._busy() else SharingPhase.WAKING
        elif self.phase is SharingPhase.WAKING:
            self._retry_at = self._clock() + RETRY_S
            self.problem = f"the server cannot be woken after training: {problem}"
            if self._wakes > WAKE_TRIES:
                self.problem += "; start it again"

    async def _check(self) -> None:
        """Say early whether the servers can sleep; tried again until they can."""
        self._check_at = self._clock() + AGAIN_S
        try:
            await self._require_sleep_mode()
        except gpu.NoRoom as problem:
            self.problem = str(problem)
            log.warning("servers", line=str(problem))
        except PaloradError as error:
            log.info("servers", line=str(error))

    async def _require_sleep_mode(self) -> list[HttpServer]:
        """The servers that answer, all of which can sleep."""
        servers = await self._answering()
        for server in servers:
            await gpu.require_sleep_mode(server, self._level)
        self.problem, self._check_at = "", math.inf
        return servers

    async def _fall_asleep(self) -> None:
        try:
            servers = await self._require_sleep_mode()
        except PaloradError as problem:
            self._refuse(str(problem))
            self._go(SharingPhase.ASLEEP if self._busy() else SharingPhase.AWAKE)
            return
        await self._rollout.release()
        faults.point("sleep:before")
        await _all(gpu.sleep(server, self._level) for server in servers)
        faults.point("sleep:asleep")
        await self._fleet.observe()
        self._needed_at = self._clock()
        self._go(SharingPhase.ASLEEP)

    async def _answering(self) -> list[HttpServer]:
        """The servers that answer; one that does not holds no memory that it could give back.
        Raises `ServerUnreachable` where none does."""
        found = await asyncio.gather(
            *(server.gateway() for server in self._fleet.servers), return_exceptions=True
        )
        gone = [answer for answer in found if isinstance(answer, BaseException)]
        if len(gone) == len(found) or not all(isinstance(g, ServerUnreachable) for g in gone):
            raise gone[0]
        answers = zip(self._fleet.servers, found, strict=True)
        return [server for server, answer in answers if not isinstance(answer, BaseException)]

    async def _wake(self) -> None:
        await self._rollout.release()
        if self._wakes >= WAKE_TRIES and self._restart is not None and await self._restart():
            log.warning("servers", line="the server did not wake: it is started again")
            self._wakes = 0
        self._wakes += 1
        faults.point("sleep:before-wake")
        # One that does not answer is found asleep, and woken, when it answers again.
        await _all((gpu.wake(s) for s in self._fleet.servers), but=ServerUnreachable)
        faults.point("sleep:awake")
        await self._rollout.serve(self._now())
        self._plan, self.problem = None, ""
        self._go(SharingPhase.AWAKE)

    # --- the end, and the status ---------------------------------------------------------------

    async def stop(self) -> None:
        """Leave attached servers awake and verified; a managed one ends with the daemon."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._settings.server.mode != "attach" or not self.away:
            return
        try:
            async with asyncio.timeout(STOP_S):
                await self._wake()
        except (PaloradError, TimeoutError) as error:
            log.warning("a server sleeps still; the next start wakes it", reason=str(error))

    @property
    def waits_for(self) -> str:
        """What waits for the servers or for room, in one line; empty where nothing does."""
        if problem := self.problem or self._refusals.line:
            return problem
        match self.phase:
            case SharingPhase.FALLING_ASLEEP:
                return (
                    f"{subject(self._plan)} waits until the server sleeps: "
                    "requests under way are finished first"
                )
            case SharingPhase.ASLEEP:
                return self._until_awake()
            case SharingPhase.WAKING:
                return "the server wakes after training; it answers when it is verified"
        return ""

    def _until_awake(self) -> str:
        target = self._ledger.revisions.target()
        routed = pointer.read(self._settings.layout.alias)
        waiting = []
        if routed is None or routed.revision != target.number:
            waiting.append(f"revision {target.number} goes live")
        if any(found.unloaded_at is None for found in self._ledger.retractions.erasable()):
            waiting.append("a retracted fact is unloaded")
        if not waiting:
            return ""
        return f"{' and '.join(waiting)} when the server wakes: it sleeps while palorad trains"


async def _all(work: Iterable[Awaitable[None]], but: type[Exception] | tuple[()] = ()) -> None:
    """Do all of it, whatever fails, then raise the first failure that is none of `but`."""
    for problem in await asyncio.gather(*work, return_exceptions=True):
        if problem is not None and not isinstance(problem, but):
            raise problem
