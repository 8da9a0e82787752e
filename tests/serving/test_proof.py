"""The admin key is never sent, and nothing is entrusted to whoever does not have it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from daemon.serving.alias import AdminGateway
from daemon.serving.client import HttpServer
from policies.errors import ServerRefused
from tests.support.fake_vllm import ADMIN, Replica

USER = "the-user-key-for-tests"


class Wiretap(httpx.AsyncBaseTransport):
    """Hears all requests, and may answer in the server's place."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.heard: list[httpx.Request] = []
        self.instead: Callable[[httpx.Request], httpx.Response | None] = lambda _: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.heard.append(request)
        answer = self.instead(request)
        return await self.replica.answer(request) if answer is None else answer

    @property
    def said(self) -> bytes:
        """All bytes that went over the wire."""
        lines = [b": ".join(pair) for request in self.heard for pair in request.headers.raw]
        return b"\n".join(lines + [r.url.raw_path + r.content for r in self.heard])


@pytest.fixture
def tap(tmp_path: Path) -> Wiretap:
    (tmp_path / "admin.key").write_text(ADMIN)
    (tmp_path / "served").mkdir()
    pointer = {"alias": "live", "model": "base", "revision": 0}
    (tmp_path / "alias.json").write_text(json.dumps(pointer))
    gateway = AdminGateway(tmp_path / "alias.json", tmp_path / "admin.key", tmp_path / "served")
    return Wiretap(Replica(gateway))


def ask(
    tap: Wiretap, *asked: Callable[[HttpServer], Awaitable[Any]], key: str = ADMIN
) -> list[Any]:
    """What a daemon gets that asks so, one after the other."""

    async def run() -> list[Any]:
        server = HttpServer("http://s", admin_key=key, user_key=USER, transport=tap)
        try:
            return [await one(server) for one in asked]
        finally:
            await server.aclose()

    return asyncio.run(run())


def verified(server: HttpServer) -> Awaitable[Any]:
    return server.declare_verified("base")


def test_the_admin_key_never_goes_over_the_wire(tap: Wiretap) -> None:
    """It went to whoever held the port during a restart."""
    ask(
        tap,
        lambda s: s.healthy(),
        lambda s: s.ready(),
        lambda s: s.gateway(),
        verified,
        lambda s: s.loaded(),
        lambda s: s.complete("live", ["x"], max_tokens=1),
        lambda s: s.post("/sleep?level=1&mode=wait", timeout_s=5),
        lambda s: s.post("/wake_up", timeout_s=5),
    )
    assert len(tap.heard) > 8
    assert ADMIN.encode() not in tap.said


@pytest.mark.parametrize("lie", ["nothing", "500", "proof", "echo"])
def test_who_does_not_have_the_key_is_told_nothing(tap: Wiretap, lie: str) -> None:
    def impostor(request: httpx.Request) -> httpx.Response:
        nonce = request.headers.get("x-palorad-nonce", "")
        answers = {
            "nothing": httpx.Response(200, json={}),
            "500": httpx.Response(500),
            "proof": httpx.Response(200, json={"boot": "b", "proof": "0" * 64}),
            "echo": httpx.Response(200, json={"boot": nonce, "proof": nonce}),
        }
        return answers[lie]

    tap.instead = impostor
    for one in (
        verified,
        lambda s: s.gateway(),
        lambda s: s.complete("live", ["secret"], max_tokens=1),
    ):
        with pytest.raises(ServerRefused):
            ask(tap, one)
    assert not any(key in tap.said for key in (ADMIN.encode(), USER.encode(), b"secret"))
    assert {request.url.path for request in tap.heard} == {"/palorad/hello"}


def test_what_was_signed_for_one_process_counts_in_no_other(tap: Wiretap) -> None:
    ask(tap, verified)
    old = tap.heard[-1]
    assert tap.replica.middleware.state.verified == {"base"}
    tap.replica.start()

    async def replay(content: bytes) -> int:
        headers = {**old.headers, "content-length": str(len(content))}
        again = httpx.Request(old.method, old.url, headers=headers, content=content)
        return (await tap.replica.answer(again)).status_code

    assert asyncio.run(replay(old.content)) == 403
    assert not tap.replica.middleware.state.verified


def test_a_signature_covers_method_target_and_body(tap: Wiretap) -> None:
    ask(tap, verified)
    old = tap.heard[-1]

    async def replay(method: str, url: str, content: bytes) -> int:
        headers = {**old.headers, "content-length": str(len(content))}
        again = httpx.Request(method, url, headers=headers, content=content)
        return (await tap.replica.answer(again)).status_code

    other = old.content.replace(b"base", b"evil")
    assert asyncio.run(replay("POST", str(old.url), other)) == 403
    assert asyncio.run(replay("DELETE", str(old.url), old.content)) == 403
    assert asyncio.run(replay("POST", str(old.url) + "?x=1", old.content)) == 403
    assert asyncio.run(replay("POST", "http://s/sleep?level=1", old.content)) == 403
    assert tap.replica.middleware.state.verified == {"base"}
    assert not tap.replica.asleep


def test_a_restarted_server_is_asked_for_its_proof_again_and_goes_on(tap: Wiretap) -> None:
    async def restart(_: HttpServer) -> None:
        tap.replica.start()

    ask(tap, verified, restart, verified)
    assert tap.replica.middleware.state.verified == {"base"}
    paths = [request.url.path for request in tap.heard]
    assert paths.count("/palorad/hello") == 2


def test_a_daemon_with_another_key_is_refused_by_both(tap: Wiretap) -> None:
    with pytest.raises(ServerRefused) as refused:
        ask(tap, verified, key="another-key-altogether")
    assert refused.value.status == 403
    assert not tap.replica.middleware.state.verified
