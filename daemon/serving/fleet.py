"""Promotion and rollback on every replica: prepare, flip the alias, check, retire the former."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapters import store
from daemon.base import faults
from daemon.serving import pointer
from daemon.serving.alias import PINNED
from daemon.serving.client import HttpServer
from daemon.serving.pointer import Pointer
from daemon.serving.replica import Common, Replica, ReplicaStatus
from policies.records import Record, Revision


class Ensured(Record):
    """What one `ensure` did.

    `done` when every replica serves the target; `answering` when every one that answers does.
    """

    done: bool
    answering: bool
    steps: tuple[str, ...]
    replicas: tuple[ReplicaStatus, ...]


def _always() -> bool:
    return True


@dataclass(slots=True)
class Fleet:
    """All replicas behind one alias; `pointer_file` is what their middleware reads."""

    servers: Sequence[HttpServer]
    pointer_file: Path
    common: Common
    _replicas: list[Replica] = field(init=False)

    def __post_init__(self) -> None:
        self._replicas = [Replica(server, self.common) for server in self.servers]

    @property
    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """What was seen last, without asking."""
        return tuple(replica.status for replica in self._replicas)

    async def observe(self) -> tuple[ReplicaStatus, ...]:
        """Ask every replica what it serves."""
        await asyncio.gather(*(replica.look() for replica in self._replicas))
        return self.statuses

    async def ensure(
        self,
        target: Revision,
        previous: Revision | None = None,
        keep: Collection[str] = (),
        is_target: Callable[[], bool] = _always,
    ) -> Ensured:
        """Bring every replica to `target`; `previous` and `keep` (names) stay loaded.

        Nothing is routed before it is verified, and the pointer is flipped only when every
        replica that answers has passed, and only if `is_target` still says so: loading takes
        seconds, and a rollback may come meanwhile. A replica that does not answer routes nothing
        unverified when it comes back. Never raises for a replica's failure: the result tells.
        """
        steps: list[str] = []
        goal = self._pointer_to(target)
        current = self._restored(goal, steps)
        passed = await asyncio.gather(*(r.prepare(goal, steps) for r in self._replicas))
        reachable = [r.status.healthy for r in self._replicas]
        agreed = any(passed) and all(p or not h for p, h in zip(passed, reachable, strict=True))
        if not agreed:
            return self._result(steps)
        if current != goal:
            if not is_target():
                steps.append(f"{goal.model} is not the target any more: nothing flipped")
                return self._result(steps)
            self._flip(goal, steps)
        ready = [r for r, ok in zip(self._replicas, passed, strict=True) if ok]
        if not all(await asyncio.gather(*(r.check(goal) for r in ready))):
            if current != goal:
                self._put_back(current, steps)
            return self._result(steps)
        protected = {goal.model, self.common.base, *keep}
        if previous is not None:
            protected.add(self._pointer_to(previous).model)
        await asyncio.gather(*(r.retire(protected, steps) for r in ready))
        return self._result(steps, done=all(passed), answering=True)

    def _restored(self, goal: Pointer, steps: list[str]) -> Pointer:
        """What the pointer file says; `goal` is written where it is lost or damaged."""
        current = pointer.read(self.pointer_file)
        if current is not None and current.alias == self.common.alias:
            return current
        # Safe before verification: the middleware routes only what was verified in its process.
        pointer.write(self.pointer_file, goal)
        steps.append(f"pointer restored to {goal.model}")
        return goal

    def _flip(self, goal: Pointer, steps: list[str]) -> None:
        faults.point("serve:before-flip")
        pointer.write(self.pointer_file, goal)
        faults.point("serve:flipped")
        steps.append(f"alias {self.common.alias} answers from {goal.model}")

    def _put_back(self, former: Pointer, steps: list[str]) -> None:
        pointer.write(self.pointer_file, former)
        steps.append(f"alias {self.common.alias} put back to {former.model}")
        for replica in self._replicas:
            replica.checked = None

    def _result(
        self, steps: Sequence[str], *, done: bool = False, answering: bool = False
    ) -> Ensured:
        return Ensured(done=done, answering=answering, steps=tuple(steps), replicas=self.statuses)

    async def stage(self, name: str) -> HttpServer:
        """Load and verify a candidate on the first replica, for evaluation under its own name.

        Raises `NotServed` with the reason when it is not fit to be loaded, `ServerUnreachable`
        or `ServerRefused` when the replica cannot say.
        """
        await self._replicas[0].stage(name)
        return self._replicas[0].server

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
            directory = self.common.served / name
            if not PINNED.match(name) or (current is not None and current.model == name):
                continue
            if directory.is_dir():
                await asyncio.to_thread(_delete, directory)
                gone.append(name)
        return tuple(gone)

    def _pointer_to(self, revision: Revision) -> Pointer:
        model = self.common.base if revision.number == 0 else revision.served_name
        return Pointer(alias=self.common.alias, model=model, revision=revision.number)


def _delete(directory: Path) -> None:
    """Out of sight first, so that half a directory never stands under a revision's name."""
    grave = directory.with_name(f".tmp-gone-{directory.name}")
    directory.rename(grave)
    store.remove(grave)
