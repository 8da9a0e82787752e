"""Limits on connections: how many, how long a request may take to come, and an answer to go."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST: Final = 512
BACKLOG: Final = 64
# What this process has open itself, and connections that are accepted before others are closed.
RESERVED: Final = 64 + 3 * BACKLOG
HEADER_S: Final = 10.0
WRITE_S: Final = 60.0


@dataclass(slots=True)
class ConnectionLimits:
    """Seconds, and a number of connections; `waiting` has those without a whole request, the
    longest waiting first."""

    most: int = MOST
    header_s: float = HEADER_S
    write_s: float = WRITE_S
    waiting: dict[Limited, None] = field(default_factory=dict)


class Limited(H11Protocol):
    """One connection; when there are too many, the one that has waited longest is closed.

    A connection waits while its request is not whole. Its header must come within `header_s`; the
    middleware limits the body's time. A client that stops reading is let go after `write_s`.
    """

    limits: ConnectionLimits

    def __init__(self, *given: Any, **named: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*given, **named)
        self._header: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, or close one."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.most:
            oldest = next(iter(self.limits.waiting), self)
            oldest._close()
            if oldest is self:
                return
        self._settle()

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        """The next request is waited for, as long as connections are kept alive."""
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.limits.waiting[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has gone."""
        self._forget()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._writing = self.loop.call_later(self.limits.write_s, self._close)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _settle(self) -> None:
        """What the connection waits for now."""
        state = self.conn.their_state
        if state is h11.IDLE and not self.transport.is_closing():
            self.limits.waiting.setdefault(self)
            self._header = self._header or self.loop.call_later(self.limits.header_s, self._close)
            return
        if self._header is not None:
            self._header.cancel()
            self._header = None
        if state is not h11.SEND_BODY:
            self.limits.waiting.pop(self, None)

    def _forget(self) -> None:
        self.limits.waiting.pop(self, None)
        for timer in (self._header, self._writing):
            if timer is not None:
                timer.cancel()

    def _close(self) -> None:
        self._forget()
        self.transport.abort()


def limited(limits: ConnectionLimits) -> type[Limited]:
    """Uvicorn's protocol with these limits."""
    return type("LimitedHere", (Limited,), {"limits": limits})


def most_connections() -> int:
    """How many this process can hold, once it may open as many files as it is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + RESERVED
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return max(8, min(MOST, soft - RESERVED))
    return MOST
