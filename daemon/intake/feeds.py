"""Feeds are polled when they are due; what is new is begun as a batch, with its cursor."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import httpx
import structlog

from daemon.config.feeds import FeedSettings
from daemon.config.layout import Layout
from daemon.intake.admit import begin
from daemon.intake.fetch import Cursor, FetchedBody, fetch
from daemon.intake.public_http import EXPECTED, problem_line
from daemon.ledger.ledger import Ledger
from policies.errors import FeedFailed
from policies.facts.feed_rules import Pulse, after_failure, after_success
from policies.records import FEED, Batch

AT_ONCE: Final = 4

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Polled:
    """What one poll brought: a batch, nothing new, or a problem."""

    feed: str
    status: str
    batch: str = ""
    problem: str = ""


class Feeds:
    """Polls every feed when it is due; one that fails rests, the others go on.

    What is new is begun as a batch with its cursor; intake admits it like any other batch, and the
    end of the batch commits the cursor.
    """

    def __init__(
        self,
        feeds: Sequence[FeedSettings],
        ledger: Ledger,
        layout: Layout,
        jitter: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feeds = {feed.name: feed for feed in feeds}
        self._ledger = ledger
        self._layout = layout
        self._jitter = jitter
        self._transport = transport
        self._clock = clock
        self._pulses: dict[str, Pulse] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._under_way: set[str] = set()

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for every feed that does not answer as it should."""
        found = []
        for name, pulse in self._pulses.items():
            if pulse.open:
                minutes = max(0.0, pulse.due - self._clock()) / 60
                found.append(
                    f"feed {name}: {pulse.failures} failures in a row, the last: {pulse.problem};"
                    f" asked again in {minutes:.0f} min"
                )
            elif pulse.failures:
                found.append(f"feed {name}: {pulse.problem}")
        return tuple(found)

    def pulses(self) -> tuple[tuple[str, Pulse, float], ...]:
        """Each feed, how its last polls went, and the seconds until it is asked next."""
        return tuple(
            (name, pulse, max(0.0, pulse.due - self._clock()))
            for name in self._feeds
            for pulse in (self._pulses.get(name) or Pulse(due=self._clock()),)
        )

    def due(self) -> tuple[str, ...]:
        """The feeds to be asked now."""
        return tuple(name for name in self._feeds if self.is_due(name))

    def is_due(self, name: str) -> bool:
        """Whether a feed is to be asked now."""
        pulse = self._pulses.get(name)
        return name not in self._under_way and (pulse is None or pulse.due <= self._clock())

    async def poll(self, now: datetime) -> list[Polled]:
        """Ask every feed that is due. Failures are in the results, never raised."""
        return list(await asyncio.gather(*(self.poll_one(name, now) for name in self.due())))

    async def poll_one(self, name: str, now: datetime) -> Polled:
        """Ask one feed, whether it is due or not."""
        feed, begun = self._feeds[name], self._clock()
        self._under_way.add(name)
        try:
            async with self._slots, asyncio.timeout(feed.timeout_s):
                polled = await self._poll(feed, now)
        except EXPECTED as error:
            return self._failed(feed, error, begun, now)
        except Exception as error:
            log.exception("feed.unexpected", feed=name)
            return self._failed(feed, error, begun, now)
        finally:
            self._under_way.discard(name)
        before = self._pulses.get(name)
        self._pulses[name] = after_success(begun, feed.every_s)
        if before is not None and before.open:
            self._ledger.events.record("feed.closed", name, {"failures": before.failures}, now)
        return polled

    def _failed(self, feed: FeedSettings, error: Exception, begun: float, now: datetime) -> Polled:
        problem = problem_line(error, feed.timeout_s)
        before = self._pulses.get(feed.name) or Pulse(due=begun)
        final = isinstance(error, FeedFailed) and error.final
        pulse = after_failure(
            before,
            problem,
            begun,
            open_after=1 if final else feed.open_after,
            jitter=self._jitter(),
            wait_s=error.wait_s if isinstance(error, FeedFailed) else 0.0,
        )
        self._pulses[feed.name] = pulse
        log.warning("feed.failed", feed=feed.name, problem=problem, failures=pulse.failures)
        if pulse.open and not before.open:
            self._ledger.events.record("feed.opened", feed.name, {"problem": problem}, now)
        return Polled(feed.name, "failed", problem=problem)

    # --- one poll ------------------------------------------------------------------------------

    async def _poll(self, feed: FeedSettings, now: datetime) -> Polled:
        stored = self._ledger.feeds.cursor(feed.name)
        cursor = Cursor.model_validate_json(stored) if stored else Cursor()
        part = self._layout.archive / f".{os.getpid()}.feed.{feed.name}.part"
        try:
            answer = await fetch(feed, cursor, part, now, self._transport)
            if answer is None:
                return Polled(feed.name, "unchanged")
            return self._begin(feed, cursor, answer, now)
        finally:
            part.unlink(missing_ok=True)

    def _begin(
        self, feed: FeedSettings, before: Cursor, answer: FetchedBody, now: datetime
    ) -> Polled:
        """Begin a batch with a body that is not known; otherwise only move the cursor."""
        batch_id, changed = answer.digest, answer.digest != before.body
        cursor = Cursor(
            etag=answer.etag,
            modified=answer.modified,
            place=answer.place or before.place,
            body=answer.digest,
            full_at=now if answer.full else before.full_at,
        ).model_dump_json(exclude_defaults=True)
        if not changed or self._ledger.batches.is_complete(batch_id):
            self._ledger.feeds.set_cursor(feed.name, cursor, now)
            return Polled(feed.name, "unchanged")
        batch = Batch(
            id=batch_id,
            name=f"{feed.name}@{now:%Y%m%dT%H%M%SZ}",
            received_at=now,
            source=FEED + feed.name,
            accepted=0,
            quarantined=0,
        )
        begin(self._ledger, self._layout, answer.part, batch, cursor=cursor)
        log.info("feed.new", feed=feed.name, batch=batch_id)
        return Polled(feed.name, "new", batch=batch_id)
