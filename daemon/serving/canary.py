"""A canary on the replicas: brought there, counted, and verified once more before it takes all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from daemon.serving.replica import Replica
from daemon.serving.replica_status import NotServed
from daemon.serving.waiting import Patience, succeeded
from policies.canary import Traffic
from policies.errors import PaloradError

_NONE = Traffic()


async def bring(
    replicas: Mapping[int, Replica], name: str, patience: Patience, goes_on: Callable[[], bool]
) -> bool:
    """Whether a revision is loaded and verified on one of the replicas at least; the others'
    middleware has their live revision answer in its place."""
    tasks = {
        n: asyncio.create_task(replica.guarded(partial(_staged, replica, name)))
        for n, replica in replicas.items()
    }
    return bool(await succeeded(tasks, patience, goes_on=goes_on))


async def unsound(replicas: Sequence[Replica], name: str) -> str | None:
    """What a replica answers otherwise than the published revision, in words; None where all that
    have it and answer are sound."""
    found = await asyncio.gather(
        *(r.common.turns.take(partial(_problem, r, name)) for r in replicas if r.has(name))
    )
    return next((f"{url}: {said}" for url, said in found if said), None)


def traffic(replicas: Sequence[Replica], name: str) -> Traffic:
    """What users asked of a revision on all replicas, as last seen."""
    return sum((r.traffic.get(name, _NONE) for r in replicas), _NONE)


async def _staged(replica: Replica, name: str) -> bool:
    try:
        await replica.stage(name)
    except PaloradError:
        return False
    return True


async def _problem(replica: Replica, name: str) -> tuple[str, str]:
    try:
        await replica.verify(name)
    except NotServed as problem:
        return replica.server.url, str(problem)
    except PaloradError:
        pass  # it does not answer: that says nothing of the revision
    return replica.server.url, ""
