"""Turns: how many replicas are attended to at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

SLOW_S: Final = 0.5

T = TypeVar("T")


class Turns:
    """At most `at_once` steps at a time. One that takes longer than `slow_s` seconds goes on, but
    gives its turn away: replicas that hang do not keep the others waiting."""

    def __init__(self, at_once: int, slow_s: float = SLOW_S) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._slow_s = slow_s

    async def take(self, step: Callable[[], Awaitable[T]]) -> T:
        """What `step` gives, once it is its turn."""
        await self._free.acquire()
        holds = True

        def give_away() -> None:
            nonlocal holds
            if holds:
                holds = False
                self._free.release()

        slow = asyncio.get_running_loop().call_later(self._slow_s, give_away)
        try:
            return await step()
        finally:
            slow.cancel()
            give_away()
