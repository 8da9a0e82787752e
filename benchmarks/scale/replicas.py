"""How long a switch takes as replicas grow: `replicas_switch_s`, seconds by number of replicas.

Stand-ins behind the real middleware, all in one process, answer at once from stored identities: so
what is measured is what palorad itself takes, for both sides of each request, and what grows with
their number. A switch is a promotion of a new revision from the moment at which it becomes the
target: loaded, verified, switched and checked everywhere. `rollback` goes back to the former
revision. `cpu` is what of a switch the daemon's own process computes, `loop` the longest time for
which its event loop stood still, `look` one look at a fleet that is settled.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final

from daemon.serving.client import HttpServer
from daemon.serving.common import Common
from daemon.serving.fleet import Fleet
from policies.records import Revision
from tests.support.fake_vllm import ADMIN, publish
from tests.support.live import BASE, revision
from tests.support.many_replicas import ManyReplicas

COUNTS: Final = (1, 3, 10, 30, 100)
SWITCHES: Final = 5
BEAT_S: Final = 0.005


class Heart:
    """Notes for how long the event loop stood still."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def beat(self) -> None:
        """Until cancelled."""
        while True:
            began = time.perf_counter()
            await asyncio.sleep(BEAT_S)
            self.longest_s = max(self.longest_s, time.perf_counter() - began - BEAT_S)


async def _timed(step: Awaitable[Any]) -> float:
    began = time.perf_counter()
    done = await step
    if not getattr(done, "done", True):
        raise AssertionError(f"not done: {[r.reason for r in done.replicas if r.reason][:3]}")
    return time.perf_counter() - began


async def measure(fleet: Fleet, revisions: list[Revision]) -> dict[str, float]:
    """Seconds of switches through `revisions`, the first of which is not counted."""
    first, *others = revisions
    await fleet.ensure(BASE)
    await fleet.ensure(first)
    heart = Heart()
    there: list[float] = []
    own: list[float] = []
    back: list[float] = []
    looks: list[float] = []
    beating = asyncio.create_task(heart.beat())
    former = first
    for target in others:
        began = time.process_time()
        there.append(await _timed(fleet.ensure(target, former)))
        own.append(time.process_time() - began)
        back.append(await _timed(fleet.ensure(former, target)))
        await fleet.ensure(target, former)
        looks.append(await _timed(fleet.ensure(target, former)))
        former = target
    beating.cancel()
    return {
        "median": statistics.median(there),
        "worst": max(there),
        "cpu_median": statistics.median(own),
        "rollback_median": statistics.median(back),
        "rollback_worst": max(back),
        "look_median": statistics.median(looks),
        "loop_worst": heart.longest_s,
    }


async def _of(many: ManyReplicas, root: Path, revisions: list[Revision]) -> dict[str, float]:
    servers = [HttpServer(url, admin_key=ADMIN) for url in many.urls]
    common = Common(alias="live", base="base", served=root / "served", drain_s=3600)
    try:
        return await measure(Fleet(servers, root / "alias.json", common), revisions)
    finally:
        for server in servers:
            await server.aclose()


def switches(count: int, times: int = SWITCHES) -> dict[str, float]:
    """The figures of one number of replicas."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        key = root / "admin.key"
        key.write_text(ADMIN)
        served = root / "served"
        served.mkdir()
        revisions = [revision(n, publish(served, n)) for n in range(1, times + 2)]
        with ManyReplicas(root / "alias.json", key, served, count) as many:
            return asyncio.run(_of(many, root, revisions))


def run() -> dict[str, Any]:
    """`{"replicas_switch_s": {"1": {"median": …, "worst": …, "ratio": …, …}, …}}`."""
    figures = {str(count): switches(count) for count in COUNTS}
    alone = figures["1"]["median"]
    for one in figures.values():
        one["ratio"] = one["median"] / alone
    return {
        "replicas_switch_s": {
            count: {name: round(value, 4) for name, value in one.items()}
            for count, one in figures.items()
        }
    }
