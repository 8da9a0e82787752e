"""Removes what need not be kept, by the calendar and when a person asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from daemon.config.settings import Settings
from daemon.keeping.pruning import Pruner
from daemon.ledger.ledger import Ledger
from daemon.loop.boundary import Boundary
from daemon.serving.replica_status import ReplicaStatus
from policies.retention import Removal


class LoadedReplicas(Protocol):
    """What is needed of `daemon.serving.fleet.Fleet`."""

    @property
    def statuses(self) -> Sequence[ReplicaStatus]:
        """What was seen last."""
        ...


class Retention:
    """One pruner for the calendar and the commands; what goes wrong with it shows in the status."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        replicas: LoadedReplicas,
        boundary: Boundary,
        now: Callable[[], datetime],
    ) -> None:
        def serving() -> set[str]:
            named = [(*status.loaded, status.active) for status in replicas.statuses]
            return {name for names in named for name in names if name}

        self._pruner = Pruner(ledger, settings.layout, settings.keep, serving)
        self._boundary = boundary
        self._now = now
        self._begun: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Remove what need not be kept."""
        await self._boundary.run("retention", self._prune)

    async def begin(self) -> tuple[Removal, ...]:
        """The same without waiting for it; what is to be removed."""
        found = await self._pruner.found(self._now())
        if found:
            self._begun = asyncio.create_task(self.run(), name="retention")
        return found

    async def _prune(self) -> None:
        await self._pruner.prune(self._now())
