"""What stands before every route: bodies that do not come, sums, headers on whatever is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message

from daemon.config.settings import Settings
from daemon.intake.admit import rules_of
from daemon.ledger.ledger import Ledger
from daemon.web.app import build
from daemon.web.desk import Desk
from daemon.web.guard import SMALL_BODY, Guard
from daemon.web.operators import Operators

MEGABYTE = 2**20


async def length(request: Request) -> PlainTextResponse:
    """How long the body is, said a moment after it has come."""
    body = await request.body()
    await asyncio.sleep(0.2)
    return PlainTextResponse(str(len(body)))


APP = Starlette(routes=[Route("/", length, methods=["POST"])])


def client_of(app: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x"
            await asyncio.sleep(0.05)

    async def run() -> int:
        async with client_of(Guard(APP, body_s=0.3)) as client:
            return (await client.post("/", content=slowly())).status_code

    assert asyncio.run(run()) == 408


def test_whoever_waits_for_an_answer_is_not_hurried() -> None:
    async def run() -> tuple[int, str]:
        async with client_of(Guard(APP, body_s=0.05)) as client:
            answer = await client.post("/", content=b"xyz")
            return answer.status_code, answer.text

    assert asyncio.run(run()) == (200, "3")


def test_large_bodies_are_few_at_once_and_small_ones_come_beside_them() -> None:
    async def run() -> tuple[list[int], int]:
        async with client_of(Guard(APP, max_body=MEGABYTE)) as client:
            many = [client.post("/", content=b"x" * MEGABYTE) for _ in range(12)]
            small = client.post("/", content=b"x" * (SMALL_BODY // 2))
            *answers, little = await asyncio.gather(*many, small)
            again = await client.post("/", content=b"x" * MEGABYTE)
        assert again.status_code == 200, "what has gone counts no more"
        return [answer.status_code for answer in answers], little.status_code

    large, small = asyncio.run(run())
    assert large.count(200) == 4
    assert large.count(503) == 8
    assert small == 200


def test_no_socket_but_http_is_opened() -> None:
    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        said.append(message)

    asyncio.run(Guard(APP)({"type": "websocket", "path": "/"}, receive, send))
    assert said == [{"type": "websocket.close", "code": 1008}]


class Defect:
    """A view of the loop that has a defect."""

    def now(self) -> None:
        raise ValueError("a defect")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    feed = {"name": "news", "url": "https://news.example/facts?key=secret"}
    settings = Settings.model_validate({"state_dir": tmp_path, "feeds": [feed]}).rooted(tmp_path)
    with Ledger.open(settings.layout.ledger) as ledger:
        ledger.revisions.ensure_base("base", datetime(2026, 11, 1, tzinfo=UTC))
    operators = Operators(lambda: "k" * 32, time.time)
    made = Desk(settings, {}, asyncio.new_event_loop(), rules_of(settings.intake), operators)
    made.live = Defect()  # type: ignore[assignment] - as a defect is none either
    return made


def test_an_answer_to_a_defect_says_nothing_and_has_the_headers(desk: Desk) -> None:
    async def run() -> httpx.Response:
        async with client_of(build(desk)) as client:
            return await client.get("/api/replicas")

    answer = asyncio.run(run())
    desk.loop.close()
    assert answer.status_code == 500
    assert "defect" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_a_feed_s_address_is_shown_without_its_key(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Defect, "now", lambda _: None)

    async def run() -> tuple[httpx.Response, httpx.Response]:
        async with client_of(build(desk)) as client:
            return await client.get("/api/feeds"), await client.get("/feeds")

    told, page = asyncio.run(run())
    desk.loop.close()
    assert told.json()["addresses"] == {"news": "https://news.example/facts"}
    assert "secret" not in told.text + page.text
