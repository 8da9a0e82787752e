"""What the throughput's clocks ascribe to the middleware between them, and the ratio made of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clock
from benchmarks.swap import ratios

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


async def _application(scope: Message, receive: Any, send: Send) -> None:
    await receive()
    await asyncio.sleep(0.05)
    for kind in ("http.response.start", "http.response.body"):
        await send({"type": kind})


def _slow(app: Any, request_s: float, message_s: float) -> Any:
    """A middleware that takes its time before a request and at each message."""

    async def between(scope: Message, receive: Any, send: Send) -> None:
        async def slowly(message: Message) -> None:
            time.sleep(message_s)  # noqa: ASYNC251 - busy, as the middleware would be
            await send(message)

        time.sleep(request_s)  # noqa: ASYNC251 - the same
        await app({**scope}, receive, slowly)

    return between


async def _client(message: Message | None = None) -> Message:
    await asyncio.sleep(0.02)
    return {"type": "http.request", "body": b""}


def _clocked(app: Any) -> list[float]:
    async def send(message: Message) -> None:
        await _client(message)

    asyncio.run(app({"type": "http"}, _client, send))
    app.out.close()
    return [float(part) for part in Path(app.out.name).read_text().split()]


@pytest.mark.parametrize(("request_s", "message_s", "least"), [(0.03, 0.01, 0.05), (0, 0, 0)])
def test_the_middleware_alone_is_timed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request_s: float,
    message_s: float,
    least: float,
) -> None:
    monkeypatch.setenv("CLOCK_FILE", str(tmp_path / "times"))
    inner = clock.Inner(_application)
    whole, alone = _clocked(clock.Outer(_slow(inner, request_s, message_s)))
    # The client takes 60 ms of it, the application 50.
    assert whole >= 0.11 + least
    assert least <= alone <= whole - 0.1


def test_the_ratio_is_that_of_the_times() -> None:
    found = ratios([(0.1, 0.01)] * 50 + [(0.3, 0.01)] * 50)
    assert found["throughput_ratio"] == 0.95
    low, high = found["throughput_ratio_interval"]
    assert 0.94 < low <= 0.95 <= high < 0.96
    assert found["middleware_p50_ms"] == 10.0
