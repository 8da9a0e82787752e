"""One replica: what it serves, and how it comes to serve another revision or fewer of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from adapters import store
from daemon.base import faults
from daemon.serving import identity
from daemon.serving.alias import PINNED
from daemon.serving.client import GatewayState, HttpServer
from daemon.serving.identity import EXACT, Tolerance
from daemon.serving.pointer import Pointer
from daemon.serving.protocol import Completion, Loaded
from policies.errors import PaloradError, ServerRefused, ServerUnreachable, ServerUnusable
from policies.records import Record

ASLEEP: Final = "sleeps while palorad trains; it is verified again when it wakes"


class ReplicaStatus(Record):
    """What is known of one replica.

    `active` is the model that its alias answers from, None when nothing is routed; `verified_at`
    says when the active revision was verified on the process that runs now.
    """

    url: str
    healthy: bool = False
    asleep: bool = False
    target: str | None = None
    active: str | None = None
    verified_at: datetime | None = None
    loaded: tuple[str, ...] = ()
    reason: str = "not asked yet"


class NotServed(ServerUnusable):
    """A revision that must not be routed on a replica; the message says why."""


def _utc() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Common:
    """What the replicas of one fleet share: names, limits in seconds, clocks.

    `served` is the directory of composed revisions, under the same path for every replica.
    `restart` is asked when a replica computes NaN, which stays in its prefix cache. `intact` are
    revisions whose files are as published, `poison` those that computed NaN, with the reason.
    """

    alias: str
    base: str
    served: Path
    drain_s: float = 2.0
    verify_timeout_s: float = 60.0
    tolerance: Tolerance = EXACT
    now: Callable[[], datetime] = _utc
    monotonic: Callable[[], float] = time.monotonic
    nonce: Callable[[], str] = lambda: secrets.token_hex(8)
    restart: Callable[[str], Awaitable[None]] | None = None
    intact: set[str] = field(default_factory=set)
    poison: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Replica:
    """One server process as the daemon sees it; what is known ends with that process."""

    server: HttpServer
    common: Common
    status: ReplicaStatus = field(init=False)
    checked: Pointer | None = None
    _instance_id: str = ""
    _verified: dict[str, datetime] = field(default_factory=dict)
    _broken: dict[str, str] = field(default_factory=dict)
    _idle_since: dict[str, float] = field(default_factory=dict)

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
                reason=_explain(error, self.server.url),
            )
            return None
        verified = gateway.revision == 0 or gateway.model in gateway.verified
        routed = verified and not gateway.asleep
        active = gateway.model if routed and gateway.model in listed else None
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
        listed = dict(await self.server.loaded())
        if gateway.instance_id != self._instance_id:
            self._instance_id = gateway.instance_id
            self._verified.clear()
            self._broken.clear()
            self._idle_since.clear()
            self.checked = None
        return gateway, listed

    # --- on the way to another revision -------------------------------------------------------

    async def prepare(self, goal: Pointer, steps: list[str]) -> bool:
        """Whether the replica may route `goal`: loaded and verified in its present process."""
        self._note(target=goal.model)
        seen = await self.look()
        if seen is None:
            return False
        gateway, listed = seen
        if gateway.asleep:
            return False
        name = goal.model
        try:
            self._require_unbroken(name)
            if goal.revision == 0:
                if name not in listed:
                    raise NotServed(f"serves no model named {name}: set [model] name")
                self._verified.setdefault(name, self.common.now())
            elif not (name in listed and name in gateway.verified and name in self._verified):
                await self._load(name, listed, steps)
                await self._verify(name)
                steps.append(f"verified {name} on {self.server.url}")
        except PaloradError as error:
            await self._failed(name, error)
            return False
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
            await self._load(name, listed, [])
            await self._verify(name)
        except PaloradError as error:
            await self._failed(name, error)
            if name in self.common.poison:
                raise NotServed(self.common.poison[name]) from error
            raise

    def _require_unbroken(self, name: str) -> None:
        known_bad = self.common.poison.get(name) or self._broken.get(name)
        if known_bad is not None:
            raise NotServed(known_bad)

    async def _load(self, name: str, listed: dict[str, Loaded], steps: list[str]) -> None:
        path = self.common.served / name
        if name not in self.common.intact:
            problems = await asyncio.to_thread(store.verify, path)
            if problems:
                raise NotServed(f"{name} is not fit to be loaded: {'; '.join(problems[:3])}")
            self.common.intact.add(name)
        if name in listed and listed[name].root == str(path):
            return
        if name in listed:
            raise NotServed(f"{name} is loaded from {listed[name].root}, not from {path}")
        self._note(reason=f"loading {name}")
        faults.point("serve:before-load")
        await self.server.load(name, str(path))
        faults.point("serve:loaded")
        self._note(loaded=tuple(sorted({*self.status.loaded, name})))
        steps.append(f"loaded {name} on {self.server.url}")

    async def _verify(self, name: str) -> None:
        """Raise `NotServed` unless the replica answers as the published adapter does."""
        self._note(reason=f"verifying {name}")
        known = await asyncio.to_thread(identity.read, self.common.served / name)
        answers = await self._ask(name, known)
        reason = identity.mismatch(known, answers, self.common.tolerance)
        if reason is not None:
            raise NotServed(f"{name} is not the adapter that was published: {reason}")
        await self.server.declare_verified(name)
        faults.point("serve:verified")
        self._verified[name] = self.common.now()

    async def _ask(self, model: str, known: identity.Identity) -> tuple[Completion, ...]:
        timeout_s = self.common.verify_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self.server.complete(
                    model,
                    known.prompts,
                    max_tokens=known.max_tokens,
                    salt=self.common.nonce(),
                    ignore_eos=True,
                )
        except TimeoutError as error:
            raise ServerUnreachable(
                f"{self.server.url} did not answer the identity check of {model} "
                f"within {timeout_s:g} s"
            ) from error

    async def check(self, goal: Pointer) -> bool:
        """Whether the alias itself answers from `goal` on this replica."""
        if self.checked == goal:
            return True
        alias = self.common.alias
        try:
            if goal.revision == 0:
                answers = await self.server.complete(alias, ["1"], max_tokens=1)
                reason = None
            else:
                known = await asyncio.to_thread(identity.read, self.common.served / goal.model)
                answers = await self._ask(alias, known)
                reason = identity.mismatch(known, answers, self.common.tolerance)
            said = answers[0].headers.get("x-palorad-revision") if answers else None
            if said != str(goal.revision):
                reason = f"the alias answered from revision {said}, not {goal.revision}"
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
        reason = _explain(error, self.server.url)
        poisoned = isinstance(error, ServerRefused) and "Out of range float" in str(error)
        if poisoned:
            # It stays in the prefix cache of this process, and would come back with the next.
            reason = self.common.poison[name] = f"{name} computes NaN"
        if poisoned or isinstance(error, NotServed):
            self._broken[name] = reason
            self.checked = None
        self._note(reason=reason, healthy=not isinstance(error, ServerUnreachable))
        if poisoned and self.common.restart is not None:
            await self.common.restart(self.server.url)

    # --- afterwards ---------------------------------------------------------------------------

    async def retire(self, protected: Collection[str], steps: list[str]) -> None:
        """Unload what nobody needs, `drain_s` after its last request was answered."""
        spare = {n for n in self.status.loaded if PINNED.match(n)} - set(protected)
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
                    del self._idle_since[name]
                    steps.append(f"retired {name} on {self.server.url}")
        except PaloradError as error:
            self._note(reason=f"retiring: {_explain(error, self.server.url)}")

    def _note(self, **changed: object) -> None:
        self.status = self.status.model_copy(update=changed)


def _explain(error: PaloradError, url: str) -> str:
    """The error as a person should read it: what is wrong with the set-up, where that is known."""
    if isinstance(error, ServerRefused) and error.status == 404 and "/palorad/" in str(error):
        return (
            f"{url} runs without palorad's middleware: start it with "
            "--middleware palorad_alias.AliasMiddleware (docs/serving.md)"
        )
    if isinstance(error, ServerRefused) and error.status in {401, 403}:
        return (
            f"{url} does not take palorad's admin key: let PALORAD_ADMIN_KEY_FILE there and "
            "[server] admin_key_file here name the same key"
        )
    return str(error)
