"""Work that comes again and again, timed by the event loop's clock, which nobody sets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

log = structlog.get_logger(__name__)


class Wake:
    """The one event that every command sets; whoever waits on it looks at once.

    Several loops may wait on it. What is set while a loop works ends its next wait.
    """

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake every loop that waits, and those at work right afterwards."""
        self.count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seen: int, seconds: float) -> None:
        """Return once the event has been set since `count` was `seen`, or after `seconds`."""
        if self.count == seen:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, seconds)):
                    await self._event.wait()


async def every(
    seconds: float,
    work: Callable[[], Awaitable[None]],
    *,
    first_after_s: float = 0.0,
    wake: Wake | None = None,
) -> None:
    """Call `work` every `seconds` and whenever `wake` is set, until cancelled.

    The first call comes after `first_after_s`. A call that takes longer than `seconds` delays the
    next, and none is made up for. One that fails is logged and ends nothing.
    """
    loop, wake = asyncio.get_running_loop(), wake or Wake()
    due, seen = loop.time() + first_after_s, wake.count
    while True:
        await wake.wait(seen, due - loop.time())
        seen = wake.count
        try:
            await work()
        except Exception:
            log.exception("unexpected", what="a step that comes again")
        if (late := loop.time() - due) >= 0:
            due += seconds * (1 + late // seconds)
