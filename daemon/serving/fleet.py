"""Promotion on every replica: load, verify, flip, check again, retire what is no longer asked."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from adapters import store
from daemon.base import faults
from daemon.serving import identity, pointer
from daemon.serving.alias import PINNED
from daemon.serving.client import GatewayState, HttpServer
from daemon.serving.identity import EXACT, Tolerance
from daemon.serving.pointer import Pointer
from daemon.serving.protocol import Completion, Loaded
from policies.errors import PaloradError, ServerRefused, ServerUnreachable, ServerUnusable
from policies.records import Record, Revision


class ReplicaStatus(Record):
    """What is known of one replica.

    `active` is the model that its alias answers from, None when nothing is routed; `verified_at`
    says when the active revision was verified on the process that runs now.
    """

    url: str
    healthy: bool = False
    target: str | None = None
    active: str | None = None
    verified_at: datetime | None = None
    loaded: tuple[str, ...] = ()
    reason: str = "not asked yet"


class Ensured(Record):
    """What one `ensure` did: `done` when every reachable replica serves what is target."""

    done: bool
    steps: tuple[str, ...]
    replicas: tuple[ReplicaStatus, ...]


class NotServed(ServerUnusable):
    """A revision that must not be routed on a replica; the message says why."""


@dataclass(slots=True)
class _Replica:
    server: HttpServer
    status: ReplicaStatus
    instance_id: str = ""
    verified: dict[str, datetime] = field(default_factory=dict)
    checked: Pointer | None = None
    broken: dict[str, str] = field(default_factory=dict)
    idle_since: dict[str, float] = field(default_factory=dict)

    def started_again(self, instance_id: str) -> None:
        """Another process answers: nothing known of the former one holds."""
        self.instance_id = instance_id
        self.verified.clear()
        self.broken.clear()
        self.idle_since.clear()
        self.checked = None


def _utc() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Fleet:
    """All replicas behind one alias.

    `pointer_file` is what the middleware reads, `served` the directory of composed revisions;
    both are seen by every replica under the same path. `restart` is asked when a replica
    computes with NaN, which stays in its cache.
    """

    servers: Sequence[HttpServer]
    alias: str
    base: str
    pointer_file: Path
    served: Path
    drain_s: float = 2.0
    verify_timeout_s: float = 60.0
    tolerance: Tolerance = EXACT
    now: Callable[[], datetime] = _utc
    monotonic: Callable[[], float] = time.monotonic
    nonce: Callable[[], str] = lambda: secrets.token_hex(8)
    restart: Callable[[str], Awaitable[None]] | None = None
    _replicas: list[_Replica] = field(init=False)
    _intact: set[str] = field(init=False, default_factory=set)
    _poison: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._replicas = [_Replica(s, ReplicaStatus(url=s.url)) for s in self.servers]

    @property
    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """What was seen last, without asking."""
        return tuple(replica.status for replica in self._replicas)

    async def observe(self) -> tuple[ReplicaStatus, ...]:
        """Ask every replica what it serves."""
        await asyncio.gather(*(self._look(replica) for replica in self._replicas))
        return self.statuses

    async def ensure(
        self, target: Revision, previous: Revision | None = None, keep: Collection[str] = ()
    ) -> Ensured:
        """Bring every replica to `target`; `previous` and `keep` (names) stay loaded.

        Nothing is routed before it is verified, and the pointer is flipped only when every
        replica that answers has passed; one that does not answer routes nothing unverified when
        it comes back. Never raises for a replica's failure: `done` and the reasons tell.
        """
        steps: list[str] = []
        goal = self._target(target)
        current = pointer.read(self.pointer_file)
        if current is None or current.alias != self.alias:
            # Safe before verification: the middleware routes only what was verified in its process.
            pointer.write(self.pointer_file, goal)
            steps.append(f"pointer restored to {goal.model}")
            current = goal
        passed = await asyncio.gather(*(self._prepare(r, goal, steps) for r in self._replicas))
        reachable = [r.status.healthy for r in self._replicas]
        agreed = any(passed) and all(p or not h for p, h in zip(passed, reachable, strict=True))
        if not agreed:
            return Ensured(done=False, steps=tuple(steps), replicas=self.statuses)
        if current != goal:
            faults.point("serve:before-flip")
            pointer.write(self.pointer_file, goal)
            faults.point("serve:flipped")
            steps.append(f"alias {self.alias} answers from {goal.model}")
        ready = [r for r, ok in zip(self._replicas, passed, strict=True) if ok]
        checked = await asyncio.gather(*(self._check(r, goal) for r in ready))
        if not all(checked):
            if current != goal:
                pointer.write(self.pointer_file, current)
                steps.append(f"alias {self.alias} put back to {current.model}")
                for replica in self._replicas:
                    replica.checked = None
            return Ensured(done=False, steps=tuple(steps), replicas=self.statuses)
        protected = {goal.model, self.base, *keep}
        if previous is not None:
            protected.add(self._target(previous).model)
        await asyncio.gather(*(self._retire(r, protected, steps) for r in ready))
        return Ensured(done=all(passed), steps=tuple(steps), replicas=self.statuses)

    async def stage(self, name: str) -> HttpServer:
        """Load and verify a candidate on the first replica, for evaluation under its own name.

        Raises `NotServed` with the reason when it is not fit to be loaded, `ServerUnreachable`
        or `ServerRefused` when the replica cannot say.
        """
        replica = self._replicas[0]
        gateway, listed = await replica.server.gateway(), dict(await replica.server.loaded())
        if gateway.instance_id != replica.instance_id:
            replica.started_again(gateway.instance_id)
        known_bad = self._poison.get(name) or replica.broken.get(name)
        if known_bad is not None:
            raise NotServed(known_bad)
        if not (name in listed and name in replica.verified):
            try:
                await self._load(replica, name, listed, [])
                await self._verify(replica, name)
            except PaloradError as error:
                await self._failed(replica, name, error)
                if name in self._poison:
                    raise NotServed(self._poison[name]) from error
                raise
        return replica.server

    async def discard(self, names: Collection[str]) -> tuple[str, ...]:
        """Delete the directories of revisions that no replica lists; return their names.

        Deletes nothing while a replica does not answer: it may still read them.
        """
        await self.observe()
        if not all(replica.status.healthy for replica in self._replicas):
            return ()
        listed = {name for replica in self._replicas for name in replica.status.loaded}
        current = pointer.read(self.pointer_file)
        gone = []
        for name in sorted(set(names) - listed):
            directory = self.served / name
            if not PINNED.match(name) or (current is not None and current.model == name):
                continue
            if directory.is_dir():
                await asyncio.to_thread(_delete, directory)
                gone.append(name)
        return tuple(gone)

    # --- one replica --------------------------------------------------------------------------

    def _target(self, revision: Revision) -> Pointer:
        model = self.base if revision.number == 0 else revision.served_name
        return Pointer(alias=self.alias, model=model, revision=revision.number)

    async def _look(self, replica: _Replica) -> tuple[GatewayState, dict[str, Loaded]] | None:
        """What the replica's middleware and server say; None with a reason in its status."""
        try:
            gateway = await replica.server.gateway()
            listed = dict(await replica.server.loaded())
        except PaloradError as error:
            reason = _told(error, replica.server.url)
            healthy = not isinstance(error, ServerUnreachable)
            replica.status = ReplicaStatus(
                url=replica.server.url,
                healthy=healthy,
                target=replica.status.target,
                reason=reason,
            )
            return None
        if gateway.instance_id != replica.instance_id:
            replica.started_again(gateway.instance_id)
        routed = gateway.revision == 0 or gateway.model in gateway.verified
        active = gateway.model if routed and gateway.model in listed else None
        names = tuple(sorted(n for n in listed if n not in {self.alias, self.base}))
        reason = replica.status.reason if replica.status.healthy else ""
        if active is not None and active == replica.status.target:
            reason = ""
        replica.status = ReplicaStatus(
            url=replica.server.url,
            healthy=True,
            target=replica.status.target,
            active=active,
            verified_at=replica.verified.get(active or ""),
            loaded=names,
            reason=reason,
        )
        return gateway, listed

    async def _prepare(self, replica: _Replica, goal: Pointer, steps: list[str]) -> bool:
        """Whether the replica may route `goal`: loaded and verified in its present process."""
        replica.status = replica.status.model_copy(update={"target": goal.model})
        seen = await self._look(replica)
        if seen is None:
            return False
        gateway, listed = seen
        name, url = goal.model, replica.server.url
        try:
            known_bad = self._poison.get(name) or replica.broken.get(name)
            if known_bad is not None:
                raise NotServed(known_bad)
            if goal.revision == 0:
                if name not in listed:
                    raise NotServed(f"serves no model named {name}: set [model] name")
                replica.verified.setdefault(name, self.now())
            elif not (name in listed and name in gateway.verified and name in replica.verified):
                await self._load(replica, name, listed, steps)
                await self._verify(replica, name)
                steps.append(f"verified {name} on {url}")
        except PaloradError as error:
            await self._failed(replica, name, error)
            return False
        self._say(replica, reason="", verified_at=replica.verified[name])
        return True

    async def _load(
        self, replica: _Replica, name: str, listed: dict[str, Loaded], steps: list[str]
    ) -> None:
        path = self.served / name
        if name not in self._intact:
            problems = await asyncio.to_thread(store.verify, path)
            if problems:
                raise NotServed(f"{name} is not fit to be loaded: {'; '.join(problems[:3])}")
            self._intact.add(name)
        if name in listed and listed[name].root == str(path):
            return
        if name in listed:
            raise NotServed(f"{name} is loaded from {listed[name].root}, not from {path}")
        self._say(replica, reason=f"loading {name}")
        faults.point("serve:before-load")
        await replica.server.load(name, str(path))
        faults.point("serve:loaded")
        self._say(replica, loaded=tuple(sorted({*replica.status.loaded, name})))
        steps.append(f"loaded {name} on {replica.server.url}")

    async def _verify(self, replica: _Replica, name: str) -> None:
        """Raise `NotServed` unless the replica answers as the published adapter does."""
        self._say(replica, reason=f"verifying {name}")
        known = await asyncio.to_thread(identity.read, self.served / name)
        answers = await self._ask(replica, name, known)
        reason = identity.mismatch(known, answers, self.tolerance)
        if reason is not None:
            raise NotServed(f"{name} is not the adapter that was published: {reason}")
        await replica.server.declare_verified(name)
        faults.point("serve:verified")
        replica.verified[name] = self.now()

    async def _ask(
        self, replica: _Replica, model: str, known: identity.Identity
    ) -> tuple[Completion, ...]:
        try:
            async with asyncio.timeout(self.verify_timeout_s):
                return await replica.server.complete(
                    model,
                    known.prompts,
                    max_tokens=known.max_tokens,
                    salt=self.nonce(),
                    ignore_eos=True,
                )
        except TimeoutError as error:
            raise ServerUnreachable(
                f"{replica.server.url} did not answer the identity check of {model} "
                f"within {self.verify_timeout_s:g} s"
            ) from error

    async def _check(self, replica: _Replica, goal: Pointer) -> bool:
        """Whether the alias itself answers from `goal` on this replica."""
        if replica.checked == goal:
            return True
        try:
            if goal.revision == 0:
                answers = await replica.server.complete(self.alias, ["1"], max_tokens=1)
                reason = None
            else:
                known = await asyncio.to_thread(identity.read, self.served / goal.model)
                answers = await self._ask(replica, self.alias, known)
                reason = identity.mismatch(known, answers, self.tolerance)
            said = answers[0].headers.get("x-palorad-revision") if answers else None
            if said != str(goal.revision):
                reason = f"the alias answered from revision {said}, not {goal.revision}"
            if reason is not None:
                raise NotServed(reason)
        except PaloradError as error:
            await self._failed(replica, goal.model, error)
            return False
        faults.point("serve:checked")
        replica.checked = goal
        self._say(replica, active=goal.model, reason="")
        return True

    async def _failed(self, replica: _Replica, name: str, error: PaloradError) -> None:
        reason = _told(error, replica.server.url)
        poisoned = isinstance(error, ServerRefused) and "Out of range float" in str(error)
        if poisoned:
            # It stays in the prefix cache of this process, and would come back with the next.
            reason = self._poison[name] = f"{name} computes NaN"
        if poisoned or isinstance(error, NotServed):
            replica.broken[name] = reason
            replica.checked = None
        healthy = not isinstance(error, ServerUnreachable)
        self._say(replica, reason=reason, healthy=healthy)
        if poisoned and self.restart is not None:
            await self.restart(replica.server.url)

    async def _retire(self, replica: _Replica, protected: set[str], steps: list[str]) -> None:
        """Unload what nobody needs, `drain_s` after its last request was answered."""
        spare = {n for n in replica.status.loaded if PINNED.match(n)} - protected
        replica.idle_since = {n: t for n, t in replica.idle_since.items() if n in spare}
        if not spare:
            return
        try:
            gateway = await replica.server.gateway()
            for name in sorted(spare):
                if gateway.in_flight.get(name):
                    replica.idle_since.pop(name, None)
                    continue
                since = replica.idle_since.setdefault(name, self.monotonic())
                if self.monotonic() - since >= self.drain_s:
                    await replica.server.unload(name)
                    faults.point("serve:retired")
                    replica.verified.pop(name, None)
                    del replica.idle_since[name]
                    steps.append(f"retired {name} on {replica.server.url}")
        except PaloradError as error:
            self._say(replica, reason=f"retiring: {_told(error, replica.server.url)}")

    def _say(self, replica: _Replica, **changed: object) -> None:
        replica.status = replica.status.model_copy(update=changed)


def _told(error: PaloradError, url: str) -> str:
    """What a person should read of it."""
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


def _delete(directory: Path) -> None:
    """Out of sight first, so that half a directory never stands under a revision's name."""
    grave = directory.with_name(f".tmp-gone-{directory.name}")
    directory.rename(grave)
    store.remove(grave)
