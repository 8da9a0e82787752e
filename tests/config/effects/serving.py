"""[model] and [server]: how servers are started, asked and brought to a revision."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from unittest import mock

import httpx

from daemon.config.settings import Settings
from daemon.loop.preflight import prepare_state
from daemon.serving import alias, client, pointer, replicas, server_command
from daemon.serving import fleet as fleets
from daemon.serving.alias import AdminGateway
from daemon.serving.client import HttpServer
from daemon.serving.servers import Servers
from tests.config.effects import Effect, outcome
from tests.support import fake_vllm
from tests.support.live import BASE, revision

VLLM = {"server.kind": "vllm", "server.executable": sys.executable}


def state(settings: Settings, root: Path) -> object:
    """Every directory that a first start makes."""
    prepare_state(settings)
    return sorted(path for path in root.rglob("*") if path.is_dir())


def started(settings: Settings, root: Path) -> object:
    """The command line of the server and what is added to its environment."""
    return outcome(lambda: server_command.command(settings, settings.model.path, {}))


def supervised(settings: Settings, root: Path) -> object:
    """The child that is started over the model, and how long it may take."""
    prepare_state(settings)

    async def start() -> object:
        with mock.patch("daemon.serving.servers.Supervised") as child:
            child.return_value.run = child.return_value.stop = mock.AsyncMock()
            servers = Servers(settings)
            await servers.start(settings.model.path)
            await servers.stop()
        return [call.kwargs["start_timeout_s"] for call in child.call_args_list]

    return asyncio.run(start())


def wire(ask: Callable[[HttpServer], Awaitable[object]]) -> Callable[[Settings, Path], object]:
    """Every address that is asked, with the keys and the time limit of the request."""

    def observe(settings: Settings, root: Path) -> object:
        prepare_state(settings)
        settings.layout.admin_key.write_text("made-at-first-start")
        secret = server_command.admin_key_file(settings).read_bytes()
        seen: list[object] = []

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/palorad/hello":
                shown = alias.proof(secret, "boot", request.headers["x-palorad-nonce"])
                return httpx.Response(200, json={"boot": "boot", "proof": shown})
            keys = [request.headers.get(name) for name in ("x-palorad-signed", "authorization")]
            seen.append((str(request.url), keys, request.extensions["timeout"]["read"]))
            return httpx.Response(200, json={"choices": []})

        async def run() -> None:
            for server in replicas.connect(settings):
                await ask(server)
                await server.aclose()

        with mock.patch("daemon.serving.wire.Connections", lambda _: httpx.MockTransport(answer)):
            asyncio.run(run())
        return seen

    return observe


loading = wire(lambda server: server.load("palora-000001-aa", "/served"))
answering = wire(lambda server: server.complete("base", ["?"], max_tokens=1))


class Followed:
    """A fleet as the settings make it, over replicas that are no processes."""

    def __init__(self, settings: Settings, count: int = 1) -> None:
        prepare_state(settings)
        settings.layout.admin_key.write_text(fake_vllm.ADMIN)
        gateway = AdminGateway(
            settings.layout.alias, settings.layout.admin_key, settings.layout.served
        )
        self.replicas = [fake_vllm.Replica(gateway) for _ in range(count)]
        self.replica = self.replicas[0]
        servers = [
            HttpServer("http://replica", admin_key=fake_vllm.ADMIN, transport=one.transport)
            for one in self.replicas
        ]
        self.fleet: fleets.Fleet = replicas.fleet(settings, servers)
        self.names = [fake_vllm.publish(settings.layout.served, number) for number in (1, 2)]

    def ensure(self, number: int) -> None:
        goal = revision(number, self.names[number - 1]) if number else BASE
        asyncio.run(self.fleet.ensure(goal))


def pointed(settings: Settings, root: Path) -> object:
    """The alias that the middleware reads, once the base is served."""
    followed = Followed(settings)
    followed.ensure(0)
    return pointer.read(settings.layout.alias)


def retired(settings: Settings, root: Path) -> object:
    """What is loaded three seconds after another revision went live."""
    followed, clock = Followed(settings), mock.Mock(return_value=0.0)
    followed.fleet.common.monotonic = clock
    for number, seconds in ((1, 0.0), (2, 0.0), (2, 3.0)):
        clock.return_value = seconds
        followed.ensure(number)
    return sorted(followed.replica.adapters)


def verified(settings: Settings, root: Path) -> object:
    """How long the answers to the identity check of a revision are waited for."""
    followed, limits = Followed(settings), []
    waiting = asyncio.timeout

    def limited(seconds: float) -> asyncio.Timeout:
        limits.append(seconds)
        return waiting(seconds)

    with mock.patch.object(client.asyncio, "timeout", limited):
        followed.ensure(1)
    return limits


def together(settings: Settings, root: Path) -> object:
    """How many of three replicas are asked at a time at most."""
    followed, under_way, most = Followed(settings, 3), 0, 0
    followed.fleet.common.turns._slow_s = 60
    answer = fake_vllm.Replica.answer

    async def counted(replica: fake_vllm.Replica, request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(20):  # turns of the loop: the others come meanwhile
            await asyncio.sleep(0)
        under_way -= 1
        return await answer(replica, request)

    with mock.patch.object(fake_vllm.Replica, "answer", counted):
        followed.ensure(1)
    return most


def key(name: str) -> Callable[[Path], Path]:
    """A file with a key."""

    def write(root: Path) -> Path:
        path = root / name
        path.write_text(f"the-key-of-{name}-file")
        return path

    return write


EFFECTS: dict[str, Effect] = {
    "state_dir": Effect(state, "elsewhere"),
    "model.name": Effect(started, "mini"),
    "model.alias": Effect(pointed, "newest"),
    "server.kind": Effect(started, "vllm", {"server.executable": sys.executable}),
    "server.mode": Effect(supervised, "attach"),
    "server.urls": Effect(answering, ("http://127.0.0.1:9000",)),
    "server.executable": Effect(started, sys.executable, {"server.kind": "vllm"}),
    "server.extra_args": Effect(started, ("--seed", "1"), VLLM),
    "server.gpu_sharing": Effect(started, "sleep", VLLM),
    "server.max_lora_rank": Effect(started, 256),
    "server.max_loras": Effect(started, 5, VLLM),
    "server.max_cpu_loras": Effect(started, 17, VLLM),
    "server.start_timeout_s": Effect(supervised, 7.0),
    "server.request_timeout_s": Effect(answering, 7.0),
    "server.load_timeout_s": Effect(loading, 7.0),
    "server.verify_timeout_s": Effect(verified, 7.0),
    "server.replicas_at_once": Effect(together, 1),
    "server.drain_s": Effect(retired, 100.0),
    "server.admin_key_file": Effect(loading, key("admin")),
    "server.user_key_file": Effect(answering, key("user")),
}
