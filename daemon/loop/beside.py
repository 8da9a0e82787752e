"""Work that takes a while: it goes on beside the ticks, which wait for it a moment only."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Generic, TypeVar

AT_ONCE_S = 0.25

T = TypeVar("T")


class Beside(Generic[T]):
    """At most one piece of work at a time."""

    def __init__(self) -> None:
        self._task: asyncio.Future[T] | None = None

    @property
    def under_way(self) -> bool:
        """Whether it is not known yet what came of it."""
        return self._task is not None

    async def begin(self, work: Coroutine[None, None, T]) -> T | None:
        """Begin something while nothing is under way; see `outcome`."""
        self._task = asyncio.ensure_future(work)
        return await self.outcome()

    async def outcome(self) -> T | None:
        """What came of it, if it ends within a moment; raises what it raised."""
        if self._task is None:
            return None
        await asyncio.wait({self._task}, timeout=AT_ONCE_S)
        if not self._task.done():
            return None
        task, self._task = self._task, None
        return None if task.cancelled() else task.result()

    async def stop(self) -> None:
        """Go on with it no further."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
