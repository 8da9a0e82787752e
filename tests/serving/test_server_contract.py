"""What palorad needs of a server, asked of the embedded one and of the real vLLM alike."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest
import torch

from adapters import lora, store
from adapters.generate import Generator, Request
from daemon.serving import identity
from daemon.serving.client import HttpServer, Timeouts
from daemon.serving.connections import Connections
from daemon.verification.answers import check_servers, clients
from daemon.verification.findings import Inspection, Report
from policies.errors import ServerRefused, ServerUnreachable
from policies.records import Revision
from tests.serving.test_alias import ADMIN_ROUTES
from tests.support import live
from tests.support.live import PROMPTS, Live

ROUNDS = 20


@pytest.fixture(scope="module")
def generator(site: Live) -> Generator:
    return Generator(site.model_dir, max_rank=16, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def one(site: Live, generator: Generator) -> Revision:
    """Revision 1, published and loaded."""
    made = live.publish(generator, site.served, 1)
    site.do(lambda s: s.load(made.served_name, path(site, made)))
    return made


def path(site: Live, revision: Revision) -> str:
    return str(site.served / revision.served_name)


def post(site: Live, route: str, body: Any, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers["content-type"] = "application/json"
    return httpx.post(site.url + route, content=content, headers=headers, timeout=60)


def test_it_lists_the_base_and_what_is_loaded(site: Live, one: Revision) -> None:
    listed = site.do(lambda s: s.loaded())
    assert listed["base"].parent is None
    assert listed[one.served_name].root == path(site, one)
    assert listed[one.served_name].parent == "base"


def test_loading_twice_is_success_and_unloading_too(
    site: Live, generator: Generator, one: Revision
) -> None:
    site.do(lambda s: s.load(one.served_name, path(site, one)))
    other = live.publish(generator, site.served, 2)
    with pytest.raises(ServerRefused) as refused:
        site.do(lambda s: s.load(one.served_name, path(site, other)))
    assert refused.value.status == 400
    site.do(lambda s: s.load(other.served_name, path(site, other)))
    for _ in range(2):
        site.do(lambda s: s.unload(other.served_name))
    assert other.served_name not in site.do(lambda s: s.loaded())


def test_it_tells_which_adapters_compute_and_how_much_each_has_answered(
    site: Live, one: Revision
) -> None:
    name = one.served_name

    async def run() -> tuple[int, set[str], int, int]:
        asking, looking = (HttpServer(site.url, admin_key=site.admin_key) for _ in range(2))
        try:
            before = (await asking.gateway()).answered.get(name, 0)
            seen: set[str] = set()
            asked = 0
            # A tiny model may have answered before a busy host has served the first look.
            while not seen and asked < ROUNDS:
                asked += 1
                work = asking.complete(name, PROMPTS, max_tokens=300, ignore_eos=True)
                task = asyncio.create_task(work)
                while not task.done():
                    load = await looking.metrics()
                    seen |= {*load.busy}
                    await asyncio.sleep(0.01)
                await task
                assert (load.slots or 0) >= 3
            return before, seen, (await asking.gateway()).answered[name], asked
        finally:
            await asking.aclose()
            await looking.aclose()

    before, seen, after, asked = asyncio.run(run())
    assert seen == {name}
    assert after == before + asked


def test_greedy_tokens_are_those_of_the_generator(
    site: Live, generator: Generator, one: Revision
) -> None:
    known = identity.read(site.served / one.served_name)
    for salt in ("", "salted"):
        answers = site.do(
            lambda s, salt=salt: s.complete(
                one.served_name, PROMPTS, max_tokens=8, salt=salt, ignore_eos=True
            )
        )
        assert identity.mismatch(known, answers) is None
    base = site.do(lambda s: s.complete("base", PROMPTS, max_tokens=8, ignore_eos=True))
    assert identity.mismatch(known, base) is not None
    for item, answer in zip(known.items, base, strict=True):
        assert answer.token_ids == item.base_token_ids
        assert answer.logprobs == pytest.approx(item.base_logprobs, abs=1e-3)


def test_a_verification_asks_the_base_and_every_revision(site: Live, one: Revision) -> None:
    """By the routes that any user may take; another's noted answers are told from its own."""

    def found() -> Report:
        inspection = Inspection()
        known = {one.served_name}
        asyncio.run(check_servers(site.settings, clients(site.settings), known, inspection))
        return inspection.report()

    for name in site.do(lambda s: s.loaded()):
        if name.startswith("palora-") and name != one.served_name:  # what another test left
            site.do(lambda s, name=name: s.unload(name))
    report = found()
    assert report.lines == ()
    assert report.counted == {"revisions asked": 1, "bases asked": 1}
    noted = site.served / one.served_name / identity.FILE
    before = noted.read_text()
    stored = json.loads(before)
    for item in stored["items"]:
        item["token_ids"], item["base_token_ids"] = item["base_token_ids"], item["token_ids"]
        item["logprobs"], item["base_logprobs"] = item["base_logprobs"], item["logprobs"]
    try:
        noted.write_text(json.dumps(stored))
        revision, base = (finding.what for finding in found().findings)
    finally:
        noted.write_text(before)
    assert f"{one.served_name} does not answer as it was published" in revision
    assert "the base base is not the one that was trained on" in base


def test_answers_come_in_the_order_of_the_prompts(site: Live, generator: Generator) -> None:
    prompts = [f"{i} and {i * i} make" for i in range(70)]
    answers = site.do(lambda s: s.complete("base", prompts, max_tokens=2))
    expected = generator.generate(None, [Request(generator.encode(p), 2) for p in prompts])
    assert [a.token_ids for a in answers] == [e.token_ids for e in expected]


def test_chat_uses_the_template(site: Live, generator: Generator) -> None:
    answer = site.do(lambda s: s.chat("base", "Hello?", max_tokens=6))
    ids = generator.encode_chat([{"role": "user", "content": "Hello?"}])
    (expected,) = generator.generate(None, [Request(ids, 6)])
    assert answer.model == "base"
    body = {"model": "base", "messages": [{"role": "user", "content": "Hello?"}]}
    extra = {"max_tokens": 6, "temperature": 0, "return_token_ids": True}
    choice = post(site, "/v1/chat/completions", body | extra).json()["choices"][0]
    assert tuple(choice["token_ids"]) == expected.token_ids
    assert choice["message"]["content"] == answer.text


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_says_what_the_whole_answer_says(site: Live, route: str, one: Revision) -> None:
    for model in ("base", one.served_name):
        body: dict[str, Any] = {"model": model, "max_tokens": 12, "temperature": 0}
        if route.endswith("chat/completions"):
            body["messages"] = [{"role": "user", "content": "Who?"}]
        else:
            body["prompt"] = "Who?"
        whole = post(site, route, body).json()["choices"][0]
        text = whole["text"] if "text" in whole else whole["message"]["content"]
        stream = post(site, route, {**body, "stream": True})
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in stream.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        chunks = [json.loads(line) for line in lines]
        assert {chunk["model"] for chunk in chunks} == {model}
        parts = [c for chunk in chunks for c in chunk["choices"]]
        said = "".join(p["text"] if "text" in p else p["delta"].get("content", "") for p in parts)
        assert said == text
        assert parts[-1]["finish_reason"] == whole["finish_reason"]


def test_stop_seed_and_limits(site: Live) -> None:
    body = {"model": "base", "prompt": "count", "max_tokens": 24, "temperature": 0}
    text = post(site, "/v1/completions", body).json()["choices"][0]["text"]
    stop = text[5]
    stopped = post(site, "/v1/completions", {**body, "stop": [stop]}).json()["choices"][0]
    assert stopped["text"] == text[: text.index(stop)]
    assert stopped["finish_reason"] == "stop"
    sampled = [
        post(site, "/v1/completions", {**body, "temperature": 1.0, "seed": 7}).json()["choices"]
        for _ in range(2)
    ]
    assert sampled[0][0]["text"] == sampled[1][0]["text"]


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("/v1/completions", b"{", 400),
        ("/v1/completions", {"model": "base"}, 400),
        ("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": -1}, 400),
        ("/v1/completions", {"model": "base", "prompt": "x", "temperature": -1}, 400),
        ("/v1/completions", {"model": "base", "prompt": "x" * 600}, 400),
        ("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 5000}, 400),
        ("/v1/completions", {"model": "unknown", "prompt": "x"}, 404),
        ("/v1/chat/completions", {"model": "base", "messages": "x"}, 400),
        ("/v1/chat/completions", {"model": "unknown", "messages": []}, 400),
    ],
)
def test_what_is_wrong_gets_its_status(site: Live, route: str, body: Any, status: int) -> None:
    response = post(site, route, body)
    if body == {"model": "unknown", "messages": []}:
        assert response.status_code in {400, 404}
    else:
        assert response.status_code == status
    assert response.json()["error"]["message"]


def test_what_cannot_be_loaded_is_refused_and_the_server_lives_on(
    site: Live, generator: Generator
) -> None:
    empty = site.served / "palora-000090-00000000"
    empty.mkdir()
    with pytest.raises(ServerRefused) as refused:
        site.do(lambda s: s.load(empty.name, str(empty)))
    assert refused.value.status == 404
    with pytest.raises(ServerRefused) as refused:
        site.do(lambda s: s.load("gone", str(site.served / "gone")))
    assert refused.value.status == 404
    large = site.served / "palora-000091-00000000"
    lora.write(large, live.random_lora(site.model_dir, 1, rank=32), "base")
    with pytest.raises(ServerRefused) as refused:
        site.do(lambda s: s.load(large.name, str(large)))
    assert refused.value.status == 500
    assert site.do(lambda s: s.healthy())
    assert {"gone", empty.name, large.name}.isdisjoint(site.do(lambda s: s.loaded()))


def test_requests_under_way_finish_on_an_unloaded_adapter(site: Live, generator: Generator) -> None:
    made = live.publish(generator, site.served, 5)
    name = made.served_name
    site.do(lambda s: s.load(name, path(site, made)))
    expected = asyncio.run(_streamed(site, name, asyncio.Event()))

    async def run(server: HttpServer) -> list[str]:
        begun = [asyncio.Event() for _ in range(8)]
        tasks = [asyncio.ensure_future(_streamed(site, name, event)) for event in begun]
        for event in begun:
            await event.wait()
        unanswered = sum(not task.done() for task in tasks)
        await server.unload(name)
        assert unanswered, "all were answered before the adapter could be unloaded"
        return [await task for task in tasks]

    assert site.do(run) == [expected] * 8


async def _streamed(site: Live, name: str, begun: asyncio.Event) -> str:
    """A long answer's text; `begun` is set by its first token, when the server has the adapter."""
    body = {
        "model": name,
        "prompt": PROMPTS[0],
        "max_tokens": 400,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    text = ""
    async with (
        httpx.AsyncClient(base_url=site.url, timeout=60) as client,
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                begun.set()
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    return text


def test_the_alias_answers_from_the_target(site: Live, generator: Generator, one: Revision) -> None:
    two = live.publish(generator, site.served, 7)
    for target, former in ((live.BASE, None), (one, live.BASE), (two, one), (one, two)):
        ensured = site.fleet(lambda f, d=target, p=former: f.ensure(d, p))
        assert ensured.done, ensured.replicas
        answers = site.do(
            lambda s: s.complete("live", PROMPTS, max_tokens=8, ignore_eos=True), admin=False
        )
        pinned = site.do(
            lambda s, d=target: s.complete(d.served_name, PROMPTS, max_tokens=8, ignore_eos=True)
        )
        assert [a.token_ids for a in answers] == [a.token_ids for a in pinned]
        assert {a.model for a in answers} == {"live"}
        assert answers[0].headers["x-palorad-revision"] == str(target.number)
        assert answers[0].headers["x-palorad-model"] == target.served_name
    assert "live" in site.do(lambda s: s.loaded())


@pytest.mark.parametrize(("method", "route"), ADMIN_ROUTES)
def test_admin_routes_are_closed_to_users(site: Live, method: str, route: str) -> None:
    with httpx.Client(base_url=site.url) as client:
        assert client.request(method, site.url + route).status_code == 401
        headers = {"authorization": "Bearer some-user-key"}
        assert client.request(method, site.url + route, headers=headers).status_code == 403


@pytest.mark.parametrize("where", ["../outside", "/etc", "owner/name", "{served}/../x"])
def test_adapters_from_elsewhere_are_refused(site: Live, where: str) -> None:
    with pytest.raises(ServerRefused) as refused:
        site.do(lambda s: s.load("x", where.format(served=site.served)))
    assert refused.value.status == 403


def test_nobody_there_is_unreachable() -> None:
    async def ask() -> None:
        server = HttpServer(f"http://127.0.0.1:{live.free_port()}")
        assert not await server.healthy()
        with pytest.raises(ServerUnreachable, match="is the server running"):
            await server.loaded()
        await server.aclose()

    asyncio.run(ask())


@contextlib.contextmanager
def full_queue() -> Iterator[socket.socket]:
    """A listening socket whose one place is taken, so that no further connection stands."""
    with socket.socket() as full, socket.socket() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting.connect(full.getsockname())
        yield full


def test_a_connection_that_never_stands_says_so() -> None:
    with full_queue() as full:

        async def ask() -> None:
            url = f"http://127.0.0.1:{full.getsockname()[1]}"
            server = HttpServer(url, timeouts=Timeouts(connect_s=0.2))
            with pytest.raises(ServerUnreachable, match=r"took no connection .* within 0.2 s"):
                await server.loaded()
            await server.aclose()

        asyncio.run(ask())


class Heard(httpx.AsyncBaseTransport):
    """The client's own connections, which tell of every event on the way."""

    def __init__(self, url: str, hear: Callable[[str], None]) -> None:
        self._connections = Connections(url)
        self._hear = hear

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async def trace(event: str, _info: Mapping[str, Any]) -> None:
            self._hear(event)

        request.extensions["trace"] = trace
        return await self._connections.handle_async_request(request)

    async def aclose(self) -> None:
        await self._connections.aclose()


def test_a_request_waits_for_a_server_that_is_slow_to_take_connections() -> None:
    """It asks for a connection once more: the first never stood, and there is room by then."""
    with full_queue() as full:
        events: list[str] = []

        def hear(event: str) -> None:
            events.append(event)
            if event == "connection.retry.started":
                full.accept()[0].close()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        async def ask() -> bool:
            url = f"http://127.0.0.1:{full.getsockname()[1]}"
            server = HttpServer(url, timeouts=Timeouts(connect_s=0.5), transport=Heard(url, hear))
            asked = asyncio.ensure_future(server.healthy())
            while "connection.retry.complete" not in events and not asked.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            async with await asyncio.start_server(answer, sock=full.dup()):
                healthy = await asked
            await server.aclose()
            return healthy

        assert asyncio.run(ask())
        assert "connection.connect_tcp.failed" in events


def test_a_published_directory_is_intact(site: Live, one: Revision) -> None:
    assert store.verify(site.served / one.served_name) == ()


def test_a_connection_that_lay_idle_is_not_asked_again() -> None:
    """A server may be about to close it, and then what was sent would be lost."""
    connections, ended = 0, asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        writer.close()
        ended.set()

    async def ask() -> list[int]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
            host, port = listening.sockets[0].getsockname()[:2]
            server = HttpServer(f"http://{host}:{port}")
            counts = []
            for pause in (0.0, 0.0, 3.0):
                await asyncio.sleep(pause)
                assert await server.healthy()
                counts.append(connections)
            ended.clear()
            await server.aclose()
            await ended.wait()
        return counts

    # vLLM closes after five idle seconds.
    assert asyncio.run(ask()) == [1, 1, 2]


def test_many_at_once_are_answered_and_closing_ends_every_connection() -> None:
    open_now, most = 0, 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(0.05)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
        writer.close()
        open_now -= 1

    async def ask() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
            host, port = listening.sockets[0].getsockname()[:2]
            server = HttpServer(f"http://{host}:{port}")
            for _ in range(3):
                assert all(await asyncio.gather(*(server.healthy() for _ in range(40))))
            assert most == 40
            await server.aclose()
            while open_now:  # noqa: ASYNC110 - set by the other side of a socket
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(ask(), 20))
