"""Notifications in the running daemon: what is told, how often it is tried, and the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from daemon.config.settings import Settings
from daemon.ledger.ledger import Ledger
from daemon.loop.boundary import Boundary
from daemon.loop.ticking import every
from daemon.notification.delivery import Delivery
from daemon.notification.messages import fresh_key, key_of
from daemon.notification.trouble_watch import TroubleWatch
from daemon.serving import keys
from policies.errors import RequestRefused

LOOK_S: Final = 2.0
ASKED_S: Final = 0.1
LONGEST_TEST_S: Final = 20.0


class Notifications:
    """Nothing is told, and the outbox stays empty, unless `notify.webhook` is set."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        *,
        lines: Callable[[], Sequence[str]],
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`lines` are those of trouble as status shows them; raises `OSError` where no key can be
        made, `ConfigError` where that of `notify.key_file` cannot be read."""
        self._ledger = ledger
        self._settings = settings
        self._lines = lines
        self._now = now
        self._clock = clock
        self._boundary = Boundary()
        self._one_at_a_time = asyncio.Lock()
        self._delivery: Delivery | None = None
        chosen = settings.notify
        ledger.outbox.tell(chosen.events if chosen.webhook else ())
        if chosen.webhook:
            key = key_of(_key(chosen.key_file, settings.layout.webhook_key))
            self._delivery = Delivery(ledger, chosen, key, now=now, clock=clock)
            self._watch = TroubleWatch(ledger, chosen, now=now, clock=clock)

    @property
    def trouble(self) -> tuple[str, ...]:
        """What cannot be told; it is not told itself."""
        found = self._delivery.trouble if self._delivery else ()
        return *found, *self._boundary.trouble

    def ticks(self) -> Iterator[Coroutine[None, None, None]]:
        """What comes again and again."""
        if self._delivery is not None:
            yield every(self._settings.daemon.tick_s, self.deliver)
            yield every(LOOK_S, self.look, first_after_s=LOOK_S)

    async def deliver(self) -> None:
        """Post what waits in the outbox."""
        if self._delivery is not None:
            async with self._one_at_a_time:
                await self._boundary.run("notifications", self._delivery.step)

    async def look(self) -> None:
        """Tell trouble that lasts."""
        await self._boundary.run("telling trouble", self._look)

    async def _look(self) -> None:
        own = set(self.trouble)
        self._watch.look([line for line in self._lines() if line not in own])

    async def test(self) -> str:
        """Post a test, and wait for what becomes of it; raises `RequestRefused` if not taken."""
        if self._delivery is None:
            raise RequestRefused("notify.webhook is not set: nobody is told anything")
        seq, began = self._ledger.outbox.test(self._now()), self._clock()
        self._delivery.at_once()
        limit_s = min(self._settings.notify.timeout_s + 1.0, LONGEST_TEST_S)
        while self._clock() - began < limit_s:
            await asyncio.sleep(ASKED_S)
            if not self._ledger.outbox.holds(seq):
                return f"notification {seq} was taken by the receiver"
            if self._delivery.problem:
                break
        waiting, _ = self._ledger.outbox.counts()
        why = self._delivery.problem or f"no answer within {limit_s:g} s"
        raise RequestRefused(f"not taken: {why}; {waiting} notifications wait and are tried again")

    def retry(self) -> int:
        """Those that were given up wait again; how many."""
        if self._delivery is not None:
            self._delivery.at_once()
        return self._ledger.outbox.retry()

    async def stop(self) -> None:
        """Close the connections; what is not delivered waits in the outbox."""
        if self._delivery is not None:
            await self._delivery.aclose()


def _key(given: Path | None, own: Path) -> str:
    return keys.read(given) if given is not None else keys.ensure(own, fresh_key)
