"""How long an event loop stood still: nothing else could go on in it meanwhile."""

from __future__ import annotations

import asyncio
import time

EACH_S = 0.01


class Standstill:
    """The longest time between two looks, in milliseconds: by the clock, and how long the loop's
    own thread computed in any of them. The rest of a standstill is other processes, disk and locks.
    """

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self.longest_cpu_ms = 0.0
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            began, computed = time.perf_counter(), time.thread_time()
            await asyncio.sleep(EACH_S)
            stood = 1000 * (time.perf_counter() - began - EACH_S)
            cpu = 1000 * (time.thread_time() - computed)
            self.longest_ms = max(self.longest_ms, stood)
            self.longest_cpu_ms = max(self.longest_cpu_ms, min(cpu, stood))
