"""Without a key nobody fills the middleware's memory, holds it up or makes it fall over."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.serving import alias
from daemon.serving.alias import AdminGateway, AliasMiddleware, Message, Receive, Scope, Send

NAME = "palora-000003-1a2b3c4d"
ADMIN = "the-admin-key-for-tests"
MIB = 2**20


async def swallow(scope: Scope, receive: Receive, send: Send) -> None:
    """A server that knows no such model."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


class Site:
    """The middleware as it is asked over the wire, byte by byte."""

    def __init__(self, root: Path, **gateway: Any) -> None:
        (root / "admin.key").write_text(ADMIN)
        pointer = {"alias": "live", "model": NAME, "revision": 3}
        (root / "alias.json").write_text(json.dumps(pointer))
        gate = AdminGateway(root / "alias.json", root / "admin.key", root / "served", **gateway)
        self.middleware = AliasMiddleware(swallow, gate)
        self.middleware.state.verified.add(NAME)

    async def ask(
        self,
        body: bytes,
        path: str = "/v1/completions",
        method: str = "POST",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        chunk: int = 65_536,
        query: bytes = b"",
    ) -> int:
        """The status of the answer."""
        sent: list[Message] = []
        left = [body[at : at + chunk] for at in range(0, len(body), chunk)] or [b""]
        left.reverse()

        async def receive() -> Message:
            if not left:
                return {"type": "http.disconnect"}
            part = left.pop()
            return {"type": "http.request", "body": part, "more_body": bool(left)}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "path": path,
            "method": method,
            "headers": list(headers),
            "root_path": "",
            "query_string": query,
        }
        await self.middleware(scope, receive, send)
        return int(sent[0]["status"])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_names_that_nobody_knows_leave_nothing_behind(site: Site) -> None:
    async def story() -> int:
        await site.ask(b"{}")
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(100):
            name = f"{number:06}" + "x" * MIB
            assert await site.ask(json.dumps({"model": name, "prompt": "x"}).encode()) >= 400
        for number in range(2000):
            await site.ask(json.dumps({"model": f"unknown-{number}"}).encode())
            await site.ask(json.dumps({"model": f"palora-{number:06}-00000000"}).encode())
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return after - before

    # One name of a mebibyte is held by the test itself.
    assert asyncio.run(story()) < 4 * MIB
    assert not site.middleware.state.in_flight


@pytest.mark.parametrize("unit", [b"{},", b"[],", b'"",', b"0,", b'{"a":[', b'\\"', b"x"], ids=repr)
def test_a_large_body_is_not_multiplied(site: Site, unit: bytes) -> None:
    """Parsed, `{},` over and over takes 27 times its size."""
    inside = unit * ((4 * MIB - 100) // len(unit))
    if unit in {b"\\" + b'"', b"x"}:
        body = b'{"model":"live","prompt":"' + inside + b'"}'
    else:
        body = b'{"model":"live","x":[' + inside + b"0]}"

    async def story() -> int:
        await site.ask(b"{}")
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await site.ask(body)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak - before

    assert asyncio.run(story()) < 6 * len(body)


def test_a_hostile_body_does_not_hold_up_the_server(site: Site) -> None:
    """Looked through once, whatever is in it."""
    hostile = [
        b'{"x":"' + b'\\"' * (5 * MIB),
        b'{"x":' + b'"\\' * (5 * MIB),
        b'{"x" ' + b" " * (10 * MIB) + b"}",
        b'{"a":1' + b',"a"    ' * MIB + b"}",
        b"[" * (10 * MIB),
        b"{" * (10 * MIB),
        b'"' * (10 * MIB),
    ]
    for body in hostile:
        begun = time.monotonic()
        asyncio.run(site.ask(body))
        assert time.monotonic() - begun < 5, body[:20]


def test_bodies_in_tiny_pieces_are_not_multiplied(site: Site) -> None:
    body = b'{"model":"live","prompt":"' + b"x" * 200_000 + b'"}'

    async def story() -> int:
        await site.ask(b"{}")
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        await site.ask(body, chunk=1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak - before

    # What the test itself sends are the bytes 0 to 255, which Python keeps, in one list.
    assert asyncio.run(story()) < 14 * len(body)


def test_many_large_bodies_at_once_are_sent_away_and_small_ones_are_not(tmp_path: Path) -> None:
    site = Site(tmp_path, max_body=MIB)

    async def story() -> tuple[list[int], int]:
        gate = asyncio.Event()
        answers: list[int] = []

        async def slow() -> None:
            parts = [b'{"x":"', b"y" * (MIB - 100)]

            async def receive() -> Message:
                if not parts:
                    await gate.wait()
                    return {"type": "http.request", "body": b'"}', "more_body": False}
                return {"type": "http.request", "body": parts.pop(0), "more_body": True}

            async def send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    answers.append(message["status"])

            scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}
            await site.middleware(scope, receive, send)

        tasks = [asyncio.create_task(slow()) for _ in range(20)]
        await asyncio.sleep(0.05)
        small = await site.ask(b'{"model":"live"}')
        gate.set()
        await asyncio.gather(*tasks)
        return answers, small

    answers, small = asyncio.run(story())
    assert small == 404
    assert answers.count(503) >= 15
    assert answers.count(404) >= 3
    assert asyncio.run(site.ask(b'{"x":"' + b"y" * (MIB - 100) + b'"}')) == 404


def test_a_body_that_does_not_come_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alias, "BODY_S", 0.05)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    async def story() -> None:
        scope = {"type": "http", "path": "/v1/completions", "method": "POST", "headers": []}
        async with asyncio.timeout(5):
            await site.middleware(scope, receive, send)

    asyncio.run(story())
    assert sent[0]["status"] == 408


HOSTILE_HEADERS = [
    ((b"content-length", b"9" * 5000),),
    ((b"content-length", "٣".encode()),),
    ((b"content-length", b"-5"),),
    ((b"x-palorad-signed", b"\xff" * 128),),
    ((b"x-palorad-signed", b"a" * 128),),
    ((b"x-palorad-signed", b"a"),),
    ((b"x-palorad-admin-key", b"\xff\x00"),),
    ((b"x-palorad-nonce", b"\xff" * 32),),
    ((b"authorization", b"Bearer \xff\xfe"),),
    ((b"authorization", b"\xff"),),
]
PATHS = [
    "/v1/completions",
    "/v1/models",
    "/v1/models/" + "x" * 5000,
    "/v1/models/x\n",
    "/palorad/hello",
    "/palorad/ready",
    "/palorad/state",
    "/palorad/verified",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/adapters/\ud800",
    "/sleep",
    "\x00",
    "",
]
BODIES = [
    b"",
    b"\x00",
    b"\xff\xfe{\x00",
    b'{"model":"\\ud800"}',
    b'{"model":"palora-' + b"1" * 5000 + b'-00000000"}',
    '{"model":"palora-٠٠٠٠٠١-00000000"}'.encode(),
    b'{"model":"palora-000001-00000000\\n"}',
    b'{"model":1e999,"x":NaN}',
    b'{"model":{"model":"live"}}',
    b'[{"model":"live"}]',
    b'"model"',
    b'{"model":',
    b'{"model":"live"',
    b'{"model":"live\xff"}',
    b'{"lora_name":"a","lora_path":"/x\\u0000y"}',
    b'{"lora_name":"\\ud800","lora_path":"\\ud800","name":"\\ud800","src":"\\ud800"}',
    b'{"lora_name":[],"lora_path":{}}',
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: repr(path[:30]))
def test_hostile_bytes_get_an_answer_on_every_route(site: Site, path: str) -> None:
    keys: list[tuple[tuple[bytes, bytes], ...]] = [(), ((b"x-palorad-admin-key", ADMIN.encode()),)]

    async def story() -> None:
        for method in ("GET", "POST", "DELETE", "OPTIONS", "\x00"):
            for headers in [*HOSTILE_HEADERS, *keys]:
                for body in BODIES:
                    assert 100 <= await site.ask(body, path, method, headers) < 600

    asyncio.run(story())


@given(
    before=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=3),
    asked=st.sampled_from(["live", "base", "li\\u0076e", ""]),
    after=st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=5) | st.just("model"), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    indent=st.sampled_from([None, 2]),
)
def test_the_model_is_found_where_a_parser_finds_it(
    before: list[tuple[str, str]], asked: str, after: Any, indent: int | None
) -> None:
    body = {key: value for key, value in before if key != "model"}
    body |= {"model": asked, "after": after}
    raw = json.dumps(body, indent=indent).encode()
    name, start, end = alias._model_in(raw)
    assert name == asked
    put = raw[:start] + b'"other"' + raw[end:]
    assert json.loads(put) == {**body, "model": "other"}
