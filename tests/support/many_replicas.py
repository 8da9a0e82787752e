"""Many replicas in one process: each listens on a port of its own, behind the real middleware.

    python -m tests.support.many_replicas POINTER ADMIN_KEY SERVED COUNT

prints its ports, and then obeys lines of standard input, each answered by one line:

    NUMBER down | up | slow SECONDS | refuse NAME | hang | mend
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.server import ServerState

from daemon.serving.alias import AdminGateway, Receive, Scope, Send
from tests.support.fake_vllm import Replica

HANGING_S = 3600.0


class Listening:
    """One replica on a port that stays the same, whatever befalls it."""

    def __init__(self, gateway: AdminGateway) -> None:
        self.replica = Replica(gateway)
        self.port = 0
        self.slow_s = 0.0
        self._server: asyncio.Server | None = None
        self._connections: set[Any] = set()

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the port answers: slow where a model is loaded, or not at all."""
        if self.slow_s == HANGING_S or (self.slow_s and "load_lora" in scope["path"]):
            await asyncio.sleep(self.slow_s)
        await self.replica.middleware(scope, receive, send)

    async def up(self) -> None:
        """A new process on the same port."""
        self.replica.start()
        config = uvicorn.Config(
            self.app, interface="asgi3", lifespan="off", log_level="error", access_log=False
        )
        config.load()
        state = ServerState()
        self._connections = state.connections
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=state, app_state={}, _loop=loop
            ),
            "127.0.0.1",
            self.port,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def down(self) -> None:
        """The process is killed."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.transport.abort()

    async def obey(self, order: str, *given: str) -> None:
        """One order of the test."""
        match order:
            case "down":
                self.down()
            case "up":
                await self.up()
            case "slow":
                self.slow_s = float(given[0])
            case "hang":
                self.slow_s = HANGING_S
            case "refuse":
                self.replica.broken[given[0]] = "load"
            case "mend":
                self.slow_s = 0.0
                self.replica.broken.clear()


async def _serve(pointer: str, admin_key: str, served: str, count: str) -> None:
    gateway = AdminGateway(Path(pointer), Path(admin_key), Path(served))
    replicas = [Listening(gateway) for _ in range(int(count))]
    for one in replicas:
        await one.up()
    print(json.dumps([one.port for one in replicas]), flush=True)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        await replicas[int(line[0])].obey(*line[1:])
        print("done", flush=True)


class ManyReplicas(AbstractContextManager["ManyReplicas"]):
    """The process from outside; `urls` are its replicas'."""

    def __init__(self, pointer: Path, admin_key: Path, served: Path, count: int) -> None:
        arguments = [str(pointer), str(admin_key), str(served), str(count)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        ports = json.loads(self._process.stdout.readline())
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]

    def tell(self, number: int, *order: str) -> None:
        """Have something befall one replica; returns once it has."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join((str(number), *order)) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
