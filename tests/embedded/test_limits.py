"""Half requests, slow readers and hostile bytes do not stop the embedded server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from daemon.embedded import app as embedded
from daemon.embedded.connections import ConnectionLimits, most_connections
from daemon.serving.alias import AdminGateway
from tests.support import live

FILES = 512
SERVER = """
import json, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))
from fastapi import FastAPI
from fastapi.responses import Response
from daemon.embedded import app, connections
from daemon.serving import alias
from daemon.serving.alias import AdminGateway, AliasMiddleware
alias.BODY_S = 1.0
app.ConnectionLimits = lambda most: connections.ConnectionLimits(most, header_s=1.0, write_s=1.0)
served = FastAPI()
@served.get("/health")
async def health() -> Response:
    return Response(status_code=200)
@served.post("/v1/completions")
async def large() -> Response:
    return Response(b"x" * 20_000_000)
root = Path(sys.argv[1])
gateway = AdminGateway(root / "alias.json", root / "admin.key", root / "served")
served.add_middleware(AliasMiddleware, gateway=gateway)
app.check_model_dir = lambda _: None
app.build = lambda _: served
app.serve(app.Embedded(root, port=int(sys.argv[2])))
"""


class Running:
    """The embedded server's own listening, with few files, in front of routes without a model."""

    def __init__(self, root: Path) -> None:
        (root / "alias.json").write_text('{"alias": "live", "model": "base", "revision": 0}')
        (root / "admin.key").write_text("admin-key-for-tests")
        self.port = live.free_port()
        source = SERVER.format(files=FILES)
        self.log = root / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", source, str(root), str(self.port)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while not self.healthy():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def healthy(self, limit_s: float = 3.0) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=limit_s).is_success
        except httpx.HTTPError:
            return False

    @contextlib.contextmanager
    def held(self, said: bytes, count: int = 1) -> Iterator[list[socket.socket]]:
        """So many connections on which this is sent and nothing read."""
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(self.connect(said)) for _ in range(count)]

    def connect(self, said: bytes = b"") -> socket.socket:
        one = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        with contextlib.suppress(OSError):
            one.sendall(said)
        return one

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    one = Running(tmp_path_factory.mktemp("limits"))
    yield one
    one.process.kill()
    one.process.wait()


HALVES = {
    "nothing": b"",
    "header": b"GET /v1/mod",
    "headers": b"GET /health HTTP/1.1\r\nhost: x\r\n",
    "body": b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
}


@pytest.mark.parametrize("half", list(HALVES))
def test_half_requests_do_not_stop_the_server(server: Running, half: str) -> None:
    """260 of them took all files: it answered nobody, and its log grew by gigabytes an hour."""
    with server.held(HALVES[half], FILES + 50):
        assert server.healthy()
        assert server.descriptors() < FILES
    assert server.log.stat().st_size < 10_000


@pytest.mark.parametrize("half", list(HALVES))
def test_a_request_that_does_not_come_whole_is_given_up(server: Running, half: str) -> None:
    with server.held(HALVES[half]) as (one,):
        begun = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            while one.recv(4096):
                pass
        assert time.monotonic() - begun < 6


def test_a_header_that_comes_byte_by_byte_is_given_up(server: Running) -> None:
    begun = time.monotonic()
    with server.held(b"") as (one,), pytest.raises(OSError):
        for _ in range(100):
            one.sendall(b"x")
            time.sleep(0.1)
    assert time.monotonic() - begun < 8


def test_a_second_request_on_a_connection_has_the_same_limit(server: Running) -> None:
    with server.held(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n") as (one,):
        assert one.recv(4096).startswith(b"HTTP/1.1 200")
        one.sendall(b"GET /hea")
        begun = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(4096) == b""
        assert time.monotonic() - begun < 5


def test_a_client_that_does_not_read_is_let_go(server: Running) -> None:
    body = b'{"model": "base"}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    before = server.descriptors()
    with server.held(head + body, 5) as held:
        assert all(one.recv(20).startswith(b"HTTP/1.1 200") for one in held)
        deadline = time.monotonic() + 20
        while server.descriptors() > before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.descriptors() <= before


def test_good_requests_are_answered_beside_half_ones(server: Running) -> None:
    with server.held(b"GET /v1/mod", FILES):
        for _ in range(20):
            with server.held(b"GET /v1/mod", 5):
                assert server.healthy()


GARBAGE = [
    b"\x00" * 100_000,
    b"\xff\xfe\r\n\r\n",
    b"GET " + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000,
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZZZ\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


def test_garbage_neither_ends_the_server_nor_fills_its_log(server: Running) -> None:
    for said in GARBAGE * 5:
        with server.held(said) as (one,), contextlib.suppress(OSError):
            one.recv(4096)
    assert server.healthy()
    assert server.log.stat().st_size < 10_000, server.log.read_text()


def test_connections_leave_room_for_the_servers_own_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert 8 <= most_connections() <= ConnectionLimits().most
        assert most_connections() < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- what is in a whole request ---------------------------------------------------------------


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    root = tmp_path_factory.mktemp("hostile")
    (root / "alias.json").write_text('{"alias": "live", "model": "base", "revision": 0}')
    (root / "admin.key").write_text("admin-key-for-tests")
    gateway = AdminGateway(root / "alias.json", root / "admin.key", root / "served")
    made = embedded.build(embedded.Embedded(live.model(root / "model"), gateway=gateway))
    yield made
    made.state.engine.stop()


def post(app: FastAPI, path: str, content: bytes) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
            return await client.post(
                path, content=content, headers={"x-palorad-admin-key": "admin-key-for-tests"}
            )

    return asyncio.run(ask())


HOSTILE: list[dict[str, Any]] = [
    {"prompt": [{}] * 100_000},
    {"prompt": [[{}]] * 100_000},
    {"prompt": ["x"] * 5000},
    {"prompt": [[10**30]]},
    {"prompt": [-1]},
    {"prompt": "\ud800"},
    {"prompt": "x", "stop": ["y"] * 100_000},
    {"prompt": "x", "max_tokens": 10**30},
    {"prompt": "x", "temperature": "inf"},
    {"prompt": "x", "temperature": 1e400},
    {"prompt": "x", "top_p": "nan"},
    {"prompt": "x", "seed": 2**70},
    {"prompt": "x", "logprobs": 10**9},
    {"prompt": None},
    {"messages": [{}] * 100_000},
    {"messages": [{"role": "user", "content": [{}] * 100_000}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
    {"messages": "x"},
    {"lora_name": "\ud800", "lora_path": "/"},
    {"lora_name": "a", "lora_path": "\x00"},
    {"lora_name": [], "lora_path": {}},
    {},
]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/palorad/verified",
    ],
)
def test_hostile_requests_get_a_short_refusal(app: FastAPI, path: str) -> None:
    for body in HOSTILE:
        content = json.dumps({"model": "base", "max_tokens": 1, **body}).encode()
        response = post(app, path, content)
        assert response.status_code != 500, (body if len(content) < 1000 else "", response.text)
        assert len(response.content) < 20_000
