"""The middleware: the alias, the headers, the guarded gateway; streams stay as they are."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.serving.alias import AdminGateway, AliasMiddleware, Message, Receive, Scope, Send

NAME = "palora-000003-1a2b3c4d"
ADMIN, USER = "the-admin-key", "the-user-key"
ADMIN_ROUTES = [
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/adapters"),
    ("DELETE", f"/adapters/{NAME}"),
    ("POST", "/invocations"),
    ("GET", "/metrics"),
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("GET", "/is_paused"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("GET", "/is_sleeping"),
    ("POST", "/collective_rpc"),
    ("POST", "/reset_prefix_cache"),
    ("POST", "/reset_mm_cache"),
    ("POST", "/reset_encoder_cache"),
    ("GET", "/server_info"),
    ("POST", "/start_profile"),
    ("POST", "/stop_profile"),
    ("POST", "/update_weights"),
    ("POST", "/scale_elastic_ep"),
    ("POST", "/abort_requests"),
    ("GET", "/load"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/palorad/state"),
    ("POST", "/palorad/verified"),
    ("POST", "/v1/load_lora_adapter/"),
    ("POST", "//v1/load_lora_adapter"),
    ("POST", "/V1/load_lora_adapter"),
    ("POST", "/v1/anything/new"),
    ("PUT", "/v1/completions"),
]


class Inner:
    """The server behind: notes what reaches it and answers as told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self.scope: Scope = {}
        self.kind = b"application/json"
        self.status = 200
        self.parts: list[bytes] | None = None
        self.gate: asyncio.Event | None = None
        self.arrived = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.seen.append((scope["path"], body))
        self.arrived.set()
        model = ""
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            model = json.loads(body)["model"]
        parts = self.parts
        if parts is None:
            answer = {"id": "x", "model": model, "text": f'he said "model":"{model}"'}
            if scope["path"] == "/v1/models":
                answer = {"data": [{"id": "base", "root": "/m"}, {"id": NAME, "root": "/s"}]}
            parts = [json.dumps(answer, separators=(",", ":")).encode()]
        length = str(sum(map(len, parts))).encode()
        headers = [(b"content-type", self.kind)]
        if self.kind == b"application/json":
            headers.append((b"content-length", length))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for i, part in enumerate(parts):
            if self.gate is not None and i:
                await self.gate.wait()
            await send(
                {"type": "http.response.body", "body": part, "more_body": i < len(parts) - 1}
            )


class Site:
    """The middleware over `Inner`, with its files."""

    def __init__(self, root: Path, user: bool = False, **gateway: Any) -> None:
        (root / "admin.key").write_text(ADMIN + "\n")
        (root / "user.key").write_text(USER + "\n")
        self.served = root / "served"
        (self.served / NAME).mkdir(parents=True)
        self.pointer = root / "alias.json"
        self.point(NAME, 3)
        self.inner = Inner()
        self.middleware = AliasMiddleware(
            self.inner,
            AdminGateway(
                self.pointer,
                root / "admin.key",
                self.served,
                root / "user.key" if user else None,
                **gateway,
            ),
        )
        self.middleware.state.verified.add(NAME)

    def point(self, model: str, revision: int) -> None:
        value = {"alias": "live", "model": model, "revision": revision}
        temporary = self.pointer.with_suffix(".tmp")
        temporary.write_text(json.dumps(value))
        temporary.replace(self.pointer)

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.middleware)
            async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(ask())

    def complete(self, model: str = "live", **kwargs: Any) -> httpx.Response:
        return self.request("POST", "/v1/completions", json={"model": model}, **kwargs)

    def asked(self) -> Any:
        return json.loads(self.inner.seen[-1][1])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_the_file_needs_nothing_but_the_standard_library() -> None:
    source = Path(__file__).parents[2] / "daemon" / "serving" / "alias.py"
    imported = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported <= set(sys.stdlib_module_names)


def test_the_alias_becomes_the_revision_and_is_put_back(site: Site) -> None:
    response = site.complete()
    assert site.asked() == {"model": NAME}
    assert response.json()["model"] == "live"
    assert response.headers["x-palorad-revision"] == "3"
    assert response.headers["x-palorad-model"] == NAME
    assert int(response.headers["content-length"]) == len(response.content)


def test_what_the_model_says_is_not_rewritten(site: Site) -> None:
    assert site.complete().json()["text"] == f'he said "model":"{NAME}"'


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/tokenize"])
def test_all_generating_routes_know_the_alias(site: Site, path: str) -> None:
    response = site.request("POST", path, json={"model": "live", "x": [1.5, "ü", None]})
    assert site.asked() == {"model": NAME, "x": [1.5, "ü", None]}
    assert response.headers["x-palorad-revision"] == "3"


def test_a_pinned_revision_passes_untouched_and_is_named(site: Site) -> None:
    response = site.complete("palora-000007-00000000")
    assert site.asked() == {"model": "palora-000007-00000000"}
    assert response.headers["x-palorad-revision"] == "7"


def test_the_base_passes_untouched(site: Site) -> None:
    response = site.complete("base")
    assert site.asked() == {"model": "base"}
    assert response.headers["x-palorad-model"] == "base"
    assert "x-palorad-revision" not in response.headers


def test_a_flip_is_seen_by_the_next_request(site: Site) -> None:
    assert site.complete().headers["x-palorad-revision"] == "3"
    site.middleware.state.verified.add("palora-000004-00000000")
    site.point("palora-000004-00000000", 4)
    assert site.complete().headers["x-palorad-revision"] == "4"


def test_an_unverified_revision_is_not_routed(site: Site) -> None:
    site.point("palora-000004-00000000", 4)
    response = site.complete()
    assert response.status_code == 503
    assert "revision 4 is not verified" in response.json()["error"]["message"]
    assert site.request("GET", "/palorad/ready").status_code == 503
    assert site.inner.seen == []
    body = {"model": "palora-000004-00000000"}
    site.request("POST", "/palorad/verified", json=body, headers=bearer(ADMIN))
    assert site.complete().status_code == 200
    assert site.request("GET", "/palorad/ready").json()["revision"] == 4


def test_the_base_is_routed_only_once_it_is_verified(site: Site) -> None:
    site.point("base", 0)
    assert site.complete().status_code == 503
    site.request("POST", "/palorad/verified", json={"model": "base"}, headers=bearer(ADMIN))
    response = site.complete()
    assert site.asked() == {"model": "base"}
    assert response.headers["x-palorad-revision"] == "0"
    assert response.json()["model"] == "live"


def test_unloading_ends_the_routing(site: Site) -> None:
    body = {"lora_name": NAME}
    site.request("POST", "/v1/unload_lora_adapter", json=body, headers=bearer(ADMIN))
    assert site.complete().status_code == 503


@pytest.mark.parametrize("damage", [None, "", "{", "[]", '{"alias":"live"}', '{"alias":1}'])
def test_without_a_readable_pointer_nothing_is_routed(site: Site, damage: str | None) -> None:
    site.complete()
    if damage is None:
        site.pointer.unlink()
    else:
        site.pointer.write_text(damage)
    for model in ("live", "base", "other"):
        response = site.complete(model)
        assert response.status_code == 503
        assert "alias.json cannot be read" in response.json()["error"]["message"]
    assert site.complete(NAME).status_code == 200
    assert site.complete("base", headers={"x-palorad-admin-key": ADMIN}).status_code == 200
    site.point(NAME, 3)
    assert site.complete().status_code == 200


def test_a_body_in_chunks_is_read_whole(site: Site) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in b'{"model": "live", "prompt": "x"}':
            yield bytes([byte])

    response = site.request("POST", "/v1/completions", content=chunks())
    assert response.status_code == 200
    assert site.asked() == {"model": NAME, "prompt": "x"}
    headers = dict(site.inner.scope["headers"])
    assert b"transfer-encoding" not in headers
    assert int(headers[b"content-length"]) == len(site.inner.seen[-1][1])


def test_a_large_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    site = Site(tmp_path, max_body=100)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 60

    for content in (b"x" * 101, endless()):
        response = site.request("POST", "/v1/completions", content=content)
        assert response.status_code == 413
        assert "larger than 100 bytes" in response.json()["error"]["message"]
    assert site.inner.seen == []


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"[" * 50_000])
def test_what_is_no_json_object_passes_on_as_it_is(site: Site, raw: bytes) -> None:
    assert site.request("POST", "/v1/completions", content=raw).status_code == 200
    assert site.inner.seen[-1][1] == raw


@pytest.mark.parametrize(
    "key", ['"model"', '"mo\\u0064el"', '"\\u006d\\u006f\\u0064\\u0065\\u006c"']
)
def test_a_body_that_names_two_models_is_refused(site: Site, key: str) -> None:
    raw = f'{{"model": "palora-000001-00000000", {key} : "live"}}'
    response = site.request("POST", "/v1/completions", content=raw)
    assert response.status_code == 400
    assert site.inner.seen == []


def test_models_lists_the_alias(site: Site) -> None:
    listed = site.request("GET", "/v1/models").json()["data"]
    assert [card["id"] for card in listed] == ["base", NAME, "live"]
    assert listed[-1]["parent"] == NAME
    site.pointer.unlink()
    listed = site.request("GET", "/v1/models").json()["data"]
    assert [card["id"] for card in listed] == ["base", NAME]


# --- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
def test_admin_routes_take_the_admin_key_only(tmp_path: Path, method: str, path: str) -> None:
    for user in (False, True):
        root = tmp_path / str(user)
        root.mkdir()
        site = Site(root, user=user)
        assert site.request(method, path).status_code == 401
        assert site.request(method, path, headers=bearer(USER)).status_code == 403
        assert site.request(method, path, headers=bearer("")).status_code == 401
        wrong = {"x-palorad-admin-key": ADMIN + "x"}
        assert site.request(method, path, headers=wrong).status_code == 403
        assert site.inner.seen == []


def test_the_admin_key_opens_them_in_either_header(site: Site) -> None:
    for headers in (bearer(ADMIN), {"x-palorad-admin-key": ADMIN}):
        assert site.request("POST", "/pause", headers=headers).status_code == 200
    assert [path for path, _ in site.inner.seen] == ["/pause", "/pause"]


def test_an_unreadable_admin_key_lets_nobody_in(site: Site) -> None:
    site.middleware.gateway.admin_key.unlink()
    assert site.request("POST", "/pause", headers=bearer(ADMIN)).status_code == 503
    site.middleware.gateway.admin_key.write_text("")
    assert site.request("POST", "/pause", headers=bearer("")).status_code == 401
    assert site.request("POST", "/pause", headers=bearer(ADMIN)).status_code == 503


def test_a_user_key_is_asked_where_one_is_set(tmp_path: Path) -> None:
    site = Site(tmp_path, user=True)
    for headers in ({}, bearer("wrong"), {"authorization": USER}):
        response = site.complete(headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert site.request("GET", "/v1/models", headers=headers).status_code == 401
    for key in (USER, ADMIN):
        assert site.complete(headers=bearer(key)).status_code == 200
    assert site.request("GET", "/health").status_code == 200


def test_without_a_key_the_body_is_not_read(tmp_path: Path) -> None:
    site = Site(tmp_path, user=True)

    async def forbidden() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    assert site.request("POST", "/v1/completions", content=forbidden()).status_code == 401


def test_websockets_are_closed(site: Site) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    asyncio.run(site.middleware({"type": "websocket", "path": "/v1/realtime"}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc",
        "owner/name",
        "{served}",
        "{served}/../outside",
        "{served}/x/../../outside",
        "{served}/link",
        "{served}/a/b",
        "served/x",
    ],
)
@pytest.mark.parametrize("route", ["/v1/load_lora_adapter", "/adapters"])
def test_adapters_come_only_from_the_served_directory(site: Site, path: str, route: str) -> None:
    outside = site.served.parent / "outside"
    outside.mkdir()
    (site.served / "link").symlink_to(outside)
    path = path.format(served=site.served)
    body = {"lora_name": "x", "lora_path": path, "name": "x", "src": path}
    response = site.request("POST", route, json=body, headers=bearer(ADMIN))
    assert response.status_code == 403
    assert site.inner.seen == []


def test_a_published_directory_may_be_loaded_but_not_in_place(site: Site) -> None:
    body: dict[str, Any] = {"lora_name": NAME, "lora_path": str(site.served / NAME)}
    url = "/v1/load_lora_adapter"
    assert site.request("POST", url, json=body, headers=bearer(ADMIN)).status_code == 200
    body["load_inplace"] = True
    assert site.request("POST", url, json=body, headers=bearer(ADMIN)).status_code == 403


# --- streams ----------------------------------------------------------------------------------


def events(model: str, count: int = 3) -> list[bytes]:
    return [
        f'data: {{"id":"c","model":"{model}","choices":[{{"text":"{i}"}}]}}\n\n'.encode()
        for i in range(count)
    ]


def test_a_stream_keeps_its_events_and_names_the_alias(site: Site) -> None:
    site.inner.kind, site.inner.parts = b"text/event-stream", [*events(NAME), b"data: [DONE]\n\n"]
    response = site.complete()
    assert response.content == b"".join([*events("live"), b"data: [DONE]\n\n"])
    assert response.headers["x-palorad-revision"] == "3"


@given(cuts=st.lists(st.integers(0, 200), max_size=12))
def test_a_stream_cut_anywhere_is_the_same_stream(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    site = Site(tmp_path_factory.mktemp("cut"))
    whole = b"".join(events(NAME))
    edges = [0, *sorted(min(c, len(whole)) for c in cuts), len(whole)]
    site.inner.kind = b"text/event-stream"
    site.inner.parts = [whole[a:b] for a, b in itertools.pairwise(edges)]
    assert site.complete().content == b"".join(events("live"))


def test_an_event_is_sent_on_before_the_next_one_exists(site: Site) -> None:
    site.inner.kind, site.inner.parts = b"text/event-stream", events(NAME)
    got: list[bytes] = []

    async def run() -> None:
        site.inner.gate = asyncio.Event()
        first = asyncio.Event()
        inbox = [{"type": "http.request", "body": b'{"model":"live"}', "more_body": False}]

        async def receive() -> Message:
            return inbox.pop()

        async def send(message: Message) -> None:
            if message.get("body"):
                got.append(message["body"])
                first.set()

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        task = asyncio.create_task(site.middleware(scope, receive, send))
        await asyncio.wait_for(first.wait(), 5)
        assert got == events("live")[:1]
        site.inner.gate.set()
        await task

    asyncio.run(run())
    assert got == events("live")


def test_requests_under_way_are_counted_by_who_answers(site: Site) -> None:
    site.inner.kind, site.inner.parts = b"text/event-stream", events(NAME)

    async def run() -> list[Any]:
        site.inner.gate = asyncio.Event()
        transport = httpx.ASGITransport(app=site.middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
            task = asyncio.create_task(client.post("/v1/completions", json={"model": "live"}))
            await asyncio.wait_for(site.inner.arrived.wait(), 5)
            counts = []
            for _ in range(2):
                state = await client.get("/palorad/state", headers=bearer(ADMIN))
                counts.append(state.json()["in_flight"])
                site.inner.gate.set()
                await task
            return counts

    assert asyncio.run(run()) == [{NAME: 1}, {}]


def test_answers_are_counted_by_who_gave_them_until_it_is_unloaded(site: Site) -> None:
    def answered() -> dict[str, int]:
        state = site.request("GET", "/palorad/state", headers=bearer(ADMIN))
        return dict(state.json()["answered"])

    for model in ("live", NAME, "base"):
        site.request("POST", "/v1/completions", json={"model": model})
    assert answered() == {NAME: 2, "": 1}
    site.inner.status = 404
    for number in range(3):
        name = f"palora-{number:06}-00000000"
        site.request("POST", "/v1/completions", json={"model": name})
    assert answered() == {NAME: 2, "": 1}, "whoever asks for many names fills nothing"
    site.inner.status = 200
    unload = {"lora_name": NAME}
    site.request("POST", "/v1/unload_lora_adapter", json=unload, headers=bearer(ADMIN))
    assert answered() == {"": 1}


def test_settings_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PALORAD_ALIAS_FILE", raising=False)
    monkeypatch.setenv("PALORAD_ADMIN_KEY_FILE", str(tmp_path / "k"))
    with pytest.raises(RuntimeError, match="PALORAD_ALIAS_FILE"):
        AdminGateway.from_environment()
    monkeypatch.setenv("PALORAD_ALIAS_FILE", str(tmp_path / "alias.json"))
    gateway = AdminGateway.from_environment()
    assert gateway.served == tmp_path / "served"
    assert gateway.user_key is None


# --- sleep ------------------------------------------------------------------------------------


ADMIN_HEADER = {"x-palorad-admin-key": ADMIN}
SLEEP = "/sleep?level=1&mode=wait"


def tell(site: Site, path: str = SLEEP) -> httpx.Response:
    return site.request("POST", path, headers=ADMIN_HEADER)


@pytest.mark.parametrize(("model", "revision"), [(NAME, 3), ("base", 0)])
def test_a_sleeping_server_is_not_ready_and_sends_every_user_away(
    site: Site, model: str, revision: int
) -> None:
    site.point(model, revision)
    site.middleware.state.verified.add(model)
    assert site.request("GET", "/palorad/ready").status_code == 200
    assert tell(site).status_code == 200
    asked = len(site.inner.seen)
    refused = [
        site.request("GET", "/palorad/ready"),
        site.complete(),
        site.complete(NAME),
        site.complete("base"),
        site.complete(headers=ADMIN_HEADER),
    ]
    for response in refused:
        assert response.status_code == 503
        assert "sleeps while palorad trains" in response.json()["error"]["message"]
        assert int(response.headers["retry-after"]) > 1
    assert len(site.inner.seen) == asked


def test_what_was_verified_before_the_sleep_is_another_instance_afterwards(site: Site) -> None:
    before = site.request("GET", "/palorad/state", headers=ADMIN_HEADER).json()
    tell(site)
    tell(site, "/wake_up")
    after = site.request("GET", "/palorad/state", headers=ADMIN_HEADER).json()
    assert not after["asleep"]
    assert after["verified"] == []
    assert after["instance_id"] != before["instance_id"]
    response = site.complete()
    assert response.status_code == 503
    assert "not verified on this server yet" in response.json()["error"]["message"]


def test_nothing_is_loaded_into_a_sleeping_server(site: Site) -> None:
    body = {"lora_name": NAME, "lora_path": str(site.served / NAME)}
    tell(site)
    asked = len(site.inner.seen)
    refused = site.request("POST", "/v1/load_lora_adapter", headers=ADMIN_HEADER, json=body)
    assert refused.status_code == 503
    assert len(site.inner.seen) == asked
    tell(site, "/wake_up")
    loaded = site.request("POST", "/v1/load_lora_adapter", headers=ADMIN_HEADER, json=body)
    assert loaded.status_code == 200


async def _while_one_streams(
    site: Site, then: Callable[[httpx.AsyncClient], Awaitable[list[httpx.Response]]]
) -> tuple[httpx.Response, list[httpx.Response]]:
    """The answer of a stream that is under way until `then` has ended, and what that answered."""
    gate = asyncio.Event()
    site.inner.parts, site.inner.kind = [b"data: 1\n\n", b"data: 2\n\n"], b"text/event-stream"
    site.inner.gate = gate
    transport = httpx.ASGITransport(app=site.middleware)
    async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        streaming = asyncio.ensure_future(client.post("/v1/completions", json={"model": "live"}))
        await site.inner.arrived.wait()
        await asyncio.sleep(0)
        site.inner.gate = None
        answers = await then(client)
        gate.set()
        return await streaming, answers


def test_a_request_under_way_is_finished_before_the_server_sleeps(site: Site) -> None:
    asked: list[asyncio.Future[httpx.Response]] = []

    async def then(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked.append(asyncio.ensure_future(client.post(SLEEP, headers=ADMIN_HEADER)))
        await asyncio.sleep(0.05)
        assert "/sleep" not in [path for path, _ in site.inner.seen]
        return [await client.post("/v1/completions", json={"model": "live"})]

    async def story() -> None:
        answer, (refused,) = await _while_one_streams(site, then)
        assert answer.text == "data: 1\n\ndata: 2\n\n"
        assert refused.status_code == 503
        async with asyncio.timeout(5):
            assert (await asked[0]).status_code == 200
        assert "/sleep" in [path for path, _ in site.inner.seen]

    asyncio.run(story())


def test_a_wake_up_calls_off_a_sleep_that_still_waits(site: Site) -> None:
    async def then(client: httpx.AsyncClient) -> list[httpx.Response]:
        sleeping = asyncio.ensure_future(client.post(SLEEP, headers=ADMIN_HEADER))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            return [await client.post("/wake_up", headers=ADMIN_HEADER), await sleeping]

    answer, (woken, slept) = asyncio.run(_while_one_streams(site, then))
    assert (answer.status_code, woken.status_code, slept.status_code) == (200, 200, 409)
    assert "/sleep" not in [path for path, _ in site.inner.seen]
    assert not site.middleware.state.asleep


def test_a_wake_up_waits_for_a_sleep_that_has_begun(site: Site) -> None:
    """Overtaken, vLLM would fall asleep after it was woken, and answer from memory that is gone."""

    async def story() -> list[str]:
        order: list[str] = []
        go = asyncio.Event()
        inner = site.middleware.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            order.append(f"{scope['path']} begins")
            if scope["path"] == "/sleep":
                await go.wait()
            await inner(scope, receive, send)
            order.append(f"{scope['path']} ends")

        site.middleware.app = app
        transport = httpx.ASGITransport(app=site.middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
            slept = asyncio.ensure_future(client.post("/sleep?level=1", headers=ADMIN_HEADER))
            await asyncio.sleep(0.02)
            woken = asyncio.ensure_future(client.post("/wake_up", headers=ADMIN_HEADER))
            await asyncio.sleep(0.02)
            go.set()
            await asyncio.gather(slept, woken)
        return order

    order = asyncio.run(story())
    assert order == ["/sleep begins", "/sleep ends", "/wake_up begins", "/wake_up ends"]
    assert not site.middleware.state.asleep


def test_a_server_that_cannot_sleep_goes_on_answering(site: Site) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    inner, site.middleware.app = site.middleware.app, app
    assert tell(site).status_code == 404
    site.middleware.app = inner
    assert site.complete("base").status_code == 200
