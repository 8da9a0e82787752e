"""One replica: what it serves, and how it comes to serve another revision or fewer of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from daemon.base import faults
from daemon.serving import alias_check, identity
from daemon.serving.alias import PINNED
from daemon.serving.client import GatewayState, HttpServer
from daemon.serving.common import Common
from daemon.serving.pointer import Pointer
from daemon.serving.protocol import Completion, Loaded
from daemon.serving.replica_status import ASLEEP, NotServed, ReplicaStatus, explain
from policies.canary import Traffic
from policies.errors import PaloradError, ServerRefused, ServerUnreachable

REFUSED_S: Final = 5.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Replica:
    """One server process as the daemon sees it; what is known ends with that process.

    `fenced`: its middleware has confirmed that the alias answers from nothing. `wrong`: what it
    answered was not what was published. `other_base`: what it serves is not the base.
    """

    server: HttpServer
    common: Common
    status: ReplicaStatus = field(init=False)
    checked: Pointer | None = None
    fenced: bool = False
    wrong: bool = False
    other_base: bool = False
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    _instance_id: str = ""
    _base_sound: bool = False
    _verified: dict[str, datetime] = field(default_factory=dict)
    _broken: dict[str, tuple[str, float]] = field(default_factory=dict)
    _again: set[str] = field(default_factory=set)
    _ours: frozenset[str] = frozenset()
    _preparing: tuple[Pointer, asyncio.Task[bool]] | None = None
    _idle_since: dict[str, float] = field(default_factory=dict)
    _rests_until: float = -math.inf

    def __post_init__(self) -> None:
        self.status = ReplicaStatus(url=self.server.url)

    # --- what it serves -----------------------------------------------------------------------

    async def look(self) -> tuple[GatewayState, dict[str, Loaded]] | None:
        """What the replica's middleware and server say; None with a reason in its status."""
        try:
            gateway, listed = await self._ask_both()
        except PaloradError as error:
            self.status = ReplicaStatus(
                url=self.server.url,
                healthy=not isinstance(error, ServerUnreachable),
                target=self.status.target,
                reason=explain(error, self.server.url),
            )
            return None
        routed = gateway.model in gateway.verified and not gateway.asleep
        active = gateway.model if routed and gateway.model in listed else None
        self._ours = frozenset(
            name
            for name, one in listed.items()
            if PINNED.match(name) and Path(one.root).parent == self.common.served
        )
        names = tuple(sorted(n for n in listed if n not in {self.common.alias, self.common.base}))
        reason = self.status.reason if self.status.healthy and not self.status.asleep else ""
        if active is not None and active == self.status.target:
            reason = ""
        if gateway.asleep:
            reason = ASLEEP
        self.status = ReplicaStatus(
            url=self.server.url,
            healthy=True,
            asleep=gateway.asleep,
            target=self.status.target,
            active=active,
            verified_at=self._verified.get(active or ""),
            loaded=names,
            reason=reason,
        )
        return gateway, listed

    async def _ask_both(self) -> tuple[GatewayState, dict[str, Loaded]]:
        """The state of the middleware and the list of models, of the process that runs now."""
        gateway = await self.server.gateway()
        self.traffic = gateway.traffic
        listed = dict(await self.server.loaded())
        if gateway.instance_id != self._instance_id:
            self._instance_id = gateway.instance_id
            self._verified.clear()
            self._broken.clear()
            self._idle_since.clear()
            self._again.clear()
            self.checked, self.fenced = None, False
            self._base_sound = self.other_base = False
            self._rests_until = -math.inf
        return gateway, listed

    # --- on the way to another revision -------------------------------------------------------

    def begin(self, goal: Pointer, steps: list[str]) -> asyncio.Task[bool]:
        """`prepare` in a task of its own; one that is under way for `goal` goes on."""
        if self._preparing is not None:
            former, task = self._preparing
            if former == goal and not task.done():
                return task
            task.cancel()
        task = asyncio.create_task(self.guarded(lambda: self.prepare(goal, steps)))
        self._preparing = goal, task
        return task

    async def guarded(self, step: Callable[[], Awaitable[bool]]) -> bool:
        """A step of this replica: nothing unforeseen in it may hold up the others."""
        try:
            return await self.common.turns.take(step)
        except Exception as error:
            log.exception("unexpected", url=self.server.url)
            self._note(reason=f"unexpected {type(error).__name__}: {error}; see the log")
            return False

    async def prepare(self, goal: Pointer, steps: list[str]) -> bool:
        """Whether the replica may route `goal`: loaded and verified in its present process."""
        self._note(target=goal.model)
        self.wrong = False
        seen = await self.look()
        if seen is None:
            return False
        gateway, listed = seen
        if gateway.asleep:
            return False
        name = goal.model
        if self.common.monotonic() < self._rests_until:
            return False
        try:
            self._require_unbroken(name)
            await self._require_base()
            if goal.revision == 0:
                if name not in listed:
                    raise NotServed(f"serves no model named {name}: set [model] name")
                if not (name in gateway.verified and name in self._verified):
                    await self.server.declare_verified(name)
                    self._verified[name] = self.common.now()
            elif not (name in listed and name in gateway.verified and name in self._verified):
                await self._load(name, listed, steps)
                await self.verify(name)
                steps.append(f"verified {name} on {self.server.url}")
        except PaloradError as error:
            await self._failed(name, error)
            if isinstance(error, ServerRefused):
                self._rests_until = self.common.monotonic() + REFUSED_S
            return False
        self.fenced = False
        self._note(reason="", verified_at=self._verified[name])
        return True

    async def stage(self, name: str) -> None:
        """Load and verify a candidate, to be asked under its own name.

        Raises `NotServed` with the reason when it is not fit to be loaded, `ServerUnreachable`
        or `ServerRefused` when the replica cannot say.
        """
        gateway, listed = await self._ask_both()
        if gateway.asleep:
            raise ServerUnreachable(f"{self.server.url} {ASLEEP}")
        self._require_unbroken(name)
        if name in listed and name in self._verified:
            return
        try:
            await self._require_base()
        except NotServed as problem:
            # It says nothing of the candidate.
            raise ServerUnreachable(str(problem)) from problem
        try:
            await self._load(name, listed, [])
            await self.verify(name)
        except PaloradError as error:
            await self._failed(name, error)
            if name in self.common.poison:
                raise NotServed(self.common.poison[name]) from error
            raise

    def _require_unbroken(self, name: str) -> None:
        if name in self.common.poison:
            raise NotServed(self.common.poison[name])
        reason, since = self._broken.get(name, ("", 0.0))
        if reason and self.common.monotonic() - since < self.common.again_s:
            raise NotServed(reason)
        if reason:
            del self._broken[name]
            self._again.add(name)

    async def _require_base(self) -> None:
        """Raise `NotServed` unless this process serves the base that was first served."""
        record, base = self.common.base_record, self.common.base
        if record is None or self._base_sound:
            return
        problem = await record.problem(partial(self._answers, base), self.common.tolerance)
        self.other_base = problem is not None
        if problem is not None:
            raise NotServed(f"{self.server.url}: {problem}")
        self._base_sound = True

    async def _load(self, name: str, listed: dict[str, Loaded], steps: list[str]) -> None:
        """Have the server read the revision from its files, which are hashed each time."""
        path = self.common.served / name
        problems = await self.common.unfit(name)
        if problems:
            raise NotServed(f"{name} is not fit to be loaded: {'; '.join(problems[:3])}")
        if name in self._again and name in listed and listed[name].root == str(path):
            # It was found to be wrong before; what lies in the files may have been mended since.
            await self.server.unload(name)
            del listed[name]
        self._again.discard(name)
        if name in listed and listed[name].root == str(path):
            return
        if name in listed:
            raise NotServed(f"{name} is loaded from {listed[name].root}, not from {path}")
        self._note(reason=f"loading {name}", at_work=True)
        faults.point("serve:before-load")
        await self.server.load(name, str(path))
        faults.point("serve:loaded")
        self._note(loaded=tuple(sorted({*self.status.loaded, name})), at_work=True)
        steps.append(f"loaded {name} on {self.server.url}")

    async def verify(self, name: str) -> None:
        """Raise `NotServed` unless the replica answers as the published adapter does."""
        self._note(reason=f"verifying {name}", at_work=True)
        known = await asyncio.to_thread(identity.read, self.common.served / name)
        answers = await self._answers(name, known.prompts, known.max_tokens)
        reason = identity.mismatch(known, answers, self.common.tolerance)
        if reason is not None:
            raise NotServed(f"{name} is not the adapter that was published: {reason}")
        await self.server.declare_verified(name)
        faults.point("serve:verified")
        self._verified[name] = self.common.now()

    def has(self, name: str) -> bool:
        """Whether a revision was verified in the process that was seen last."""
        return name in self._verified

    async def _answers(
        self, model: str, prompts: Sequence[str], max_tokens: int
    ) -> tuple[Completion, ...]:
        limit_s, salt = self.common.verify_timeout_s, self.common.nonce()
        return await self.server.identify(model, prompts, max_tokens, salt=salt, limit_s=limit_s)

    async def check(self, goal: Pointer) -> bool:
        """Whether the alias itself answers from `goal` on this replica."""
        if self.checked == goal:
            return True
        self.wrong = False
        try:
            reason = await alias_check.problem(self.server, self.common, goal)
            if reason is not None:
                raise NotServed(reason)
        except PaloradError as error:
            await self._failed(goal.model, error)
            return False
        faults.point("serve:checked")
        self.checked = goal
        self._note(active=goal.model, reason="")
        return True

    async def _failed(self, name: str, error: PaloradError) -> None:
        reason = explain(error, self.server.url)
        poisoned = isinstance(error, ServerRefused) and "Out of range float" in str(error)
        if poisoned:
            # It stays in the prefix cache of this process, and would come back with the next.
            reason = self.common.poison[name] = f"{name} computes NaN"
        if poisoned or isinstance(error, NotServed):
            self._broken[name] = reason, self.common.monotonic()
            self.checked = None
        self.wrong = poisoned or isinstance(error, NotServed)
        self._note(reason=reason, healthy=not isinstance(error, ServerUnreachable))
        if poisoned and self.common.restart is not None:
            await self.common.restart(self.server.url)

    async def fence(self, steps: list[str]) -> bool:
        """Have the alias answer from nothing here; told as trouble where that cannot be had."""
        if self.fenced:
            return True
        reason = self.status.reason
        try:
            await self.server.fence()
        except PaloradError as error:
            told = explain(error, self.server.url)
            self._note(
                reason=f"{reason}; its alias cannot be closed either ({told}): take it out of "
                "the load balancer"
            )
            return False
        self.fenced, self.checked = True, None
        self._verified.clear()
        self._note(active=None, verified_at=None, reason=f"{reason}; its alias answers 503")
        steps.append(f"alias {self.common.alias} closed on {self.server.url}: {reason}")
        return True

    async def retire(self, protected: Collection[str], steps: list[str]) -> None:
        """Unload what nobody needs, `drain_s` after its last request was answered."""
        spare = self._ours - set(protected)
        self._idle_since = {n: t for n, t in self._idle_since.items() if n in spare}
        if not spare:
            return
        try:
            gateway = await self.server.gateway()
            for name in sorted(spare):
                if gateway.in_flight.get(name):
                    self._idle_since.pop(name, None)
                    continue
                now = self.common.monotonic()
                if now - self._idle_since.setdefault(name, now) >= self.common.drain_s:
                    await self.server.unload(name)
                    faults.point("serve:retired")
                    self._verified.pop(name, None)
                    self._ours -= {name}
                    del self._idle_since[name]
                    steps.append(f"retired {name} on {self.server.url}")
        except PaloradError as error:
            self._note(reason=f"retiring: {explain(error, self.server.url)}")

    def _note(self, *, at_work: bool = False, **changed: object) -> None:
        self.status = self.status.model_copy(update={**changed, "at_work": at_work})
