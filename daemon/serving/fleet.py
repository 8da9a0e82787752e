"""Promotion and rollback on every replica: prepare, flip the alias, check, retire the former."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from adapters import store
from daemon.base import faults
from daemon.serving import canary as canaries
from daemon.serving import pointer
from daemon.serving.alias import PINNED
from daemon.serving.client import HttpServer
from daemon.serving.common import Common
from daemon.serving.pointer import Canary, Pointer
from daemon.serving.replica import Replica
from daemon.serving.replica_status import ReplicaStatus
from daemon.serving.waiting import Patience, succeeded
from policies.canary import Traffic
from policies.records import Record, Revision

# A promotion waits for everybody; what must go goes without the slowest. A target that moves ends
# every wait.
WHOLE: Final = Patience(None, None)
STEADY: Final = Patience(30.0, 10.0)
URGENT: Final = Patience(10.0, 2.0)
BRIEF: Final = Patience(2.0, 2.0)
# How history tells a switch of the alias; the name of what it stands for since then ends the line.
RESTORED, FLIPPED, PUT_BACK = "restored to", "answers from", "put back to"
SWITCHED: Final = (RESTORED, FLIPPED, PUT_BACK)


class Ensured(Record):
    """What one `ensure` did.

    `done` when every replica serves the target; `answering` when one does, and the alias of no
    other answers from anything else.
    """

    done: bool
    answering: bool
    steps: tuple[str, ...]
    replicas: tuple[ReplicaStatus, ...]


def _always(*_: object) -> bool:
    return True


def _none() -> Canary | None:
    return None


@dataclass(slots=True)
class Fleet:
    """All replicas behind one alias; `pointer_file` is what their middleware reads."""

    servers: Sequence[HttpServer]
    pointer_file: Path
    common: Common
    _late: frozenset[int] = frozenset()
    _replicas: list[Replica] = field(init=False)

    def __post_init__(self) -> None:
        self._replicas = [Replica(server, self.common) for server in self.servers]

    @property
    def statuses(self) -> tuple[ReplicaStatus, ...]:
        """What was seen last, without asking."""
        return tuple(replica.status for replica in self._replicas)

    async def observe(self) -> tuple[ReplicaStatus, ...]:
        """Ask every replica what it serves."""
        turns = self.common.turns
        await asyncio.gather(*(turns.take(replica.look) for replica in self._replicas))
        return self.statuses

    async def ensure(
        self,
        target: Revision,
        previous: Revision | None = None,
        keep: Collection[str] = (),
        is_target: Callable[[], bool] = _always,
        may_stay: Callable[[int], bool] = _always,
        canary: Callable[[], Canary | None] = _none,
    ) -> Ensured:
        """Bring every replica to `target`; `previous` and `keep` (names) stay loaded.

        Nothing is routed before it is verified, and a promotion flips the pointer only when every
        replica that answers has passed. Where `may_stay` says of the revision that answers now (by
        its number) that it must go, the pointer is flipped without those that fail, and even
        without all: better no answer than that one. It is flipped only if `is_target` still says
        so: loading takes seconds, and a rollback may come meanwhile. One that fails is fenced off:
        its alias answers 503 until it has passed. Never raises for a replica's failure: the result
        tells. `canary` says what answers a share of the requests beside the target once that is
        served; what it no longer says is withdrawn first.
        """
        steps: list[str] = []
        self.show(canary(), steps, only_withdraw=True)
        goal = self._pointer_to(target)
        current, restored = self._current(goal, steps)
        urgent = current != goal and not may_stay(current.revision)
        promotion = current != goal and not urgent
        patience = URGENT if urgent else STEADY
        passed = await self._prepared(goal, steps, WHOLE if promotion else patience, is_target)
        if restored and not is_target():
            self._withdraw(goal, steps)
            return self._result(steps)
        if current != goal:
            if not is_target():
                steps.append(f"{goal.model} is not the target any more: nothing flipped")
                return self._result(steps)
            if promotion and not self._agreed(passed):
                await self._fence({n for n, r in self._numbered if r.other_base}, steps)
                return self._result(steps)
            self._flip(goal, steps)
        checks = {n: _begun(r, partial(r.check, goal)) for n, r in self._numbered if n in passed}
        serving = await succeeded(checks, patience, goes_on=is_target)
        if not is_target():
            if restored:
                self._withdraw(goal, steps)
            return self._result(steps)
        if not serving and promotion and may_stay(current.revision):
            self._put_back(current, steps)
            return self._result(steps)
        failed = {n for n, r in self._numbered if n not in serving and (urgent or r.wrong)}
        await self._fence(failed, steps)
        if serving:
            if (tried := canary()) is not None:
                those = {n: r for n, r in self._numbered if n in serving}
                brought = await canaries.bring(those, tried.model, STEADY, is_target)
                self.show(canary() if brought and is_target() else None, steps)
            protected = {goal.model, self.common.base, *keep}
            protected |= set() if tried is None else {tried.model}
            if previous is not None:
                protected.add(self._pointer_to(previous).model)
            answer = [r for n, r in self._numbered if r.status.healthy and n not in self._late]
            retiring = (partial(r.retire, protected, steps) for r in answer)
            await asyncio.gather(*map(self.common.turns.take, retiring))
        done = len(serving) == len(self._replicas)
        return self._result(steps, done=done, answering=bool(serving))

    @property
    def _numbered(self) -> tuple[tuple[int, Replica], ...]:
        return tuple(enumerate(self._replicas))

    async def _prepared(
        self, goal: Pointer, steps: list[str], patience: Patience, is_target: Callable[[], bool]
    ) -> frozenset[int]:
        """Who may route `goal`; who takes too long goes on, and is not waited for next time."""
        # Those that were seen to work take their turns first.
        ordered = sorted(self._numbered, key=lambda one: not one[1].status.healthy)
        tasks = {n: replica.begin(goal, steps) for n, replica in ordered}
        passed = await succeeded(tasks, patience, late=self._late, goes_on=is_target)
        left = frozenset(n for n, task in tasks.items() if not task.done())
        self._late = left if is_target() else left & self._late
        return passed

    def _agreed(self, passed: Collection[int]) -> bool:
        """Whether no replica whose alias answers speaks against the promotion."""
        return bool(passed) and all(
            n in passed or n in self._late or r.fenced or r.other_base or not r.status.healthy
            for n, r in self._numbered
        )

    async def _fence(self, numbers: Collection[int], steps: list[str]) -> None:
        fences = {n: _begun(r, partial(r.fence, steps)) for n, r in self._numbered if n in numbers}
        await succeeded(fences, BRIEF)

    def _current(self, goal: Pointer, steps: list[str]) -> tuple[Pointer, bool]:
        """What the pointer file says; whether it was lost or damaged, so that it is `goal` now."""
        current = pointer.read(self.pointer_file)
        if current is not None and current.alias == self.common.alias:
            return current.bare, False
        # Safe before verification: the middleware routes only what was verified in its process.
        pointer.write(self.pointer_file, goal)
        steps.append(f"pointer {RESTORED} {goal.model}")
        return goal, True

    def show(self, canary: Canary | None, steps: list[str], *, only_withdraw: bool = False) -> None:
        """Have a canary answer its share beside what the pointer names, or none any more."""
        current = pointer.read(self.pointer_file)
        if current is None or current.canary == canary or (only_withdraw and not current.canary):
            return
        chosen = None if only_withdraw else canary
        pointer.write(self.pointer_file, current.model_copy(update={"canary": chosen}))
        if chosen is None:
            steps.append(f"{current.canary and current.canary.model} is no canary any more")
        else:
            steps.append(f"{chosen.model} answers {chosen.share:.1%} of the requests as a canary")

    @property
    def canary(self) -> Canary | None:
        """What the pointer names as one."""
        current = pointer.read(self.pointer_file)
        return None if current is None else current.canary

    def traffic(self, name: str) -> Traffic:
        """What users asked of a revision since there is a canary, as last seen."""
        return canaries.traffic(self._replicas, name)

    async def unsound(self, name: str) -> str | None:
        """What a replica answers otherwise than the published revision; None where none does."""
        return await canaries.unsound(self._replicas, name)

    def _withdraw(self, goal: Pointer, steps: list[str]) -> None:
        """What a pointer was restored to is not the target any more: no answer, until the next
        look restores it to what is. A replica may just have become ready to answer from it."""
        self.pointer_file.unlink(missing_ok=True)
        steps.append(f"{goal.model} is not the target any more: its pointer is withdrawn")

    def _flip(self, goal: Pointer, steps: list[str]) -> None:
        faults.point("serve:before-flip")
        pointer.write(self.pointer_file, goal)
        faults.point("serve:flipped")
        steps.append(f"alias {self.common.alias} {FLIPPED} {goal.model}")

    def _put_back(self, former: Pointer, steps: list[str]) -> None:
        pointer.write(self.pointer_file, former)
        steps.append(f"alias {self.common.alias} {PUT_BACK} {former.model}")
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
            if not PINNED.match(name) or (current is not None and current.names(name)):
                continue
            if directory.is_dir():
                await asyncio.to_thread(_delete, directory)
                gone.append(name)
        return tuple(gone)

    def _pointer_to(self, revision: Revision) -> Pointer:
        model = self.common.base if revision.number == 0 else revision.served_name
        return Pointer(alias=self.common.alias, model=model, revision=revision.number)


def _begun(replica: Replica, step: Callable[[], Awaitable[bool]]) -> asyncio.Task[bool]:
    return asyncio.create_task(replica.guarded(step))


def _delete(directory: Path) -> None:
    """Out of sight first, so that half a directory never stands under a revision's name."""
    grave = directory.with_name(f".tmp-gone-{directory.name}")
    directory.rename(grave)
    store.remove(grave)
