"""Work that comes again and again, timed by the loop's clock, which nobody sets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger(__name__)


async def every(
    seconds: float, work: Callable[[], Awaitable[None]], *, first_after_s: float = 0.0
) -> None:
    """Call `work` every `seconds`, until cancelled; `first_after_s` before the first call.

    A call that takes longer delays the next, and none is made up for. One that fails is logged
    and ends nothing.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + first_after_s
    while True:
        await asyncio.sleep(max(0.0, due - loop.time()))
        try:
            await work()
        except Exception:
            log.exception("unexpected", what="a step that comes again")
        due += seconds * (1 + max(0.0, loop.time() - due) // seconds)
