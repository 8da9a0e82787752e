"""Two ASGI middlewares around another one: how long each request is in it, and in it alone.

Standard library only: `vllm serve` finds it by PYTHONPATH, with
`--middleware clock.Inner --middleware … --middleware clock.Outer` (the last named is outermost).
One line a request, "whole alone" in seconds, is added to the file that `CLOCK_FILE` names.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class _Clock:
    """Passes a connection on and sums what lies behind it: the application, and both channels."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.whole = self.channels = 0.0
        self._receive, self._send = receive, send

    async def pass_to(
        self, app: App, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        begun = time.perf_counter()
        try:
            await app(scope, receive, send)
        finally:
            self.whole += time.perf_counter() - begun

    async def receive(self) -> Message:
        begun = time.perf_counter()
        try:
            return await self._receive()
        finally:
            self.channels += time.perf_counter() - begun

    async def send(self, message: Message) -> None:
        begun = time.perf_counter()
        try:
            await self._send(message)
        finally:
            self.channels += time.perf_counter() - begun


class Outer:
    """Outermost: the whole request."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.out = Path(os.environ["CLOCK_FILE"]).open("a", buffering=1)  # noqa: SIM115 - never closed

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        inner: list[_Clock] = []
        scope["clocks"] = inner
        clock = _Clock(receive, send)
        await clock.pass_to(self.app, scope, clock.receive, clock.send)
        if inner:
            # What the channels take inside includes what the middleware between does to a message.
            alone = (clock.whole - clock.channels) - (inner[0].whole - inner[0].channels)
            self.out.write(f"{clock.whole} {alone}\n")


class Inner:
    """Innermost: what vLLM itself does."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        clock = _Clock(receive, send)
        scope["clocks"].append(clock)
        await clock.pass_to(self.app, scope, clock.receive, clock.send)
