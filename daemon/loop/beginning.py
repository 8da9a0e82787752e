"""An action that takes a while to begin: it goes on beside the ticks, which wait a moment only."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Final

from policies.planning import Action

AT_ONCE_S: Final = 0.25


class Beginning:
    """At most one action that is being begun: its candidate is loaded, or its request written."""

    def __init__(self) -> None:
        self._begun: tuple[Action, asyncio.Future[bool]] | None = None

    @property
    def under_way(self) -> bool:
        """Whether an action is still being begun."""
        return self._begun is not None

    async def begin(self, action: Action, work: Coroutine[None, None, bool]) -> Action | None:
        """Begin an action by `work`, which says whether that was possible; see `outcome`."""
        self._begun = action, asyncio.ensure_future(work)
        return await self.outcome()

    async def outcome(self) -> Action | None:
        """The action if it is begun within a moment; None where it takes longer, or was not
        possible. Raises what the work raised."""
        if self._begun is None:
            return None
        action, task = self._begun
        await asyncio.wait({task}, timeout=AT_ONCE_S)
        if not task.done():
            return None
        self._begun = None
        return action if not task.cancelled() and task.result() else None

    async def stop(self) -> None:
        """Begin it no further."""
        if self._begun is not None:
            _, task = self._begun
            task.cancel()
            await asyncio.wait({task})
