"""The monitor in the running daemon: how often it asks, and what is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime
from typing import Final

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop.boundary import Boundary
from daemon.loop.rollout import Rollout
from daemon.loop.ticking import every
from daemon.monitoring.monitor import Monitor, MonitoredReplicas

FIRST_ROUND_S: Final = 30.0


class Monitoring:
    """Asks nothing unless `monitor.every_s` is set."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        replicas: MonitoredReplicas,
        rollout: Rollout,
        *,
        wake: Callable[[], None],
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self._every_s = settings.monitor.every_s
        self._boundary = Boundary()
        self.monitor = Monitor(
            ledger,
            settings,
            replicas,
            settled=lambda: rollout.settled,
            wake=wake,
            rng=random.Random(),
            now=now,
            clock=clock,
        )

    @property
    def trouble(self) -> tuple[str, ...]:
        """What answers wrong, and what could not be asked."""
        return *self.monitor.trouble, *self._boundary.trouble

    def ticks(self) -> Iterator[Coroutine[None, None, None]]:
        """What comes again and again."""
        if self._every_s:
            first_s = min(self._every_s, FIRST_ROUND_S)
            yield every(self._every_s, self.ask, first_after_s=first_s)

    async def ask(self) -> None:
        """One round of questions."""
        await self._boundary.run("monitor", self.monitor.step)
