"""Delivers the outbox: one notification after the other, each until it is taken or given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

import httpx
import structlog

from daemon.base import faults
from daemon.config.notify import NotifySettings
from daemon.intake.public_http import CONNECT_S, EXPECTED, problem_line
from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Outgoing
from daemon.notification import messages
from policies.backoff import pause_s

AT_ONCE: Final = 20
PAUSES_S: Final = (1.0, 300.0)

log = structlog.get_logger(__name__)


class Delivery:
    """Posts what waits, in order: a later one never overtakes an earlier one.

    At least once: a notification leaves the outbox after the receiver has answered 2xx, so a
    daemon that is killed in between posts it again, with the same id.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: NotifySettings,
        key: bytes,
        *,
        now: Callable[[], datetime],
        clock: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`now` dates a try, `clock` in seconds times the pauses; `transport` is httpx's."""
        self._ledger = ledger
        self._settings = settings
        self._key = key
        self._now = now
        self._clock = clock
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._not_before = self._failed_at = clock()
        self._failures = 0
        self.problem = ""

    @property
    def trouble(self) -> tuple[str, ...]:
        """What is not delivered, one line each; the address without what may be secret in it."""
        waiting, dead = self._ledger.outbox.counts()
        split = urlsplit(self._settings.webhook)
        at = f"notify.webhook {split.scheme}://{split.hostname}"
        lines = []
        if self.problem and waiting:
            pause = max(0.0, self._not_before - self._clock())
            again = f"{waiting} notifications wait, tried again in {pause:.0f} s"
            lines.append(f"{at}: {self.problem}; {again}")
        if dead:
            hours = self._settings.dead_after_s / 3600
            lines.append(
                f"{at}: {dead} notifications were given up after {hours:g} h; `palorad notify "
                "retry` sends them again, `palorad notify discard` forgets them"
            )
        return tuple(lines)

    async def step(self) -> None:
        """Post what waits until the first that is not taken."""
        if self._clock() < self._not_before:
            return
        for outgoing in self._ledger.outbox.waiting(AT_ONCE):
            problem = await self._post(outgoing)
            if problem:
                self._failed(outgoing, problem)
                return
            faults.point("notify:posted")
            self._ledger.outbox.delivered(outgoing.event.seq)
            log.info("notified", type=outgoing.type.value, seq=outgoing.event.seq)
            self._failures, self.problem = 0, ""

    def at_once(self) -> None:
        """Try now, and forget what the last try said."""
        self._not_before, self.problem = self._clock(), ""

    def _failed(self, outgoing: Outgoing, problem: str) -> None:
        now = self._clock()
        waited_s = now - self._failed_at if self._failures else 0.0
        self._failures, self._failed_at = self._failures + 1, now
        self._not_before = now + pause_s(self._failures, *PAUSES_S)
        self.problem = problem
        seq, limit_s = outgoing.event.seq, self._settings.dead_after_s
        given_up = self._ledger.outbox.undelivered(seq, problem, waited_s, limit_s)
        log.warning("not notified", seq=seq, problem=problem, given_up=given_up)

    async def _post(self, outgoing: Outgoing) -> str:
        """Why it was not taken; "" if it was. What the receiver says is not read."""
        content = messages.body(self._ledger, outgoing)
        identity = messages.message_id(outgoing.event)
        headers = messages.headers(self._key, identity, content, self._now())
        timeout_s = self._settings.timeout_s
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._open().stream(
                    "POST", self._settings.webhook, content=content, headers=headers
                ) as answer,
            ):
                return "" if answer.is_success else f"answers {answer.status_code}"
        except EXPECTED as error:
            return problem_line(error, timeout_s)

    def _open(self) -> httpx.AsyncClient:
        """One client for all, and a new connection for each: none is found closed half way."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(self._settings.timeout_s, connect=CONNECT_S),
                limits=httpx.Limits(max_keepalive_connections=0),
                trust_env=False,
                follow_redirects=False,
                transport=self._transport,
            )
        return self._client

    async def aclose(self) -> None:
        """Close the client."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None
