"""How long an event loop stood still: nothing else could go on in it meanwhile."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

EACH_S = 0.01


class Standstill:
    """The longest time between two looks, in milliseconds: without what its thread waited for a
    processor that others held (`longest_ms`), and what the thread computed (`longest_cpu_ms`).
    """

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self.longest_cpu_ms = 0.0
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            began, computed = time.monotonic() - others_s(), time.thread_time()
            await asyncio.sleep(EACH_S)
            stood = 1000 * (time.monotonic() - others_s() - began - EACH_S)
            cpu = 1000 * (time.thread_time() - computed)
            self.longest_ms = max(self.longest_ms, stood)
            self.longest_cpu_ms = max(self.longest_cpu_ms, min(cpu, stood))


def others_s() -> float:
    """Seconds that this thread has waited for a processor which other processes held."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
