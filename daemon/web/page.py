"""The page's thread: its socket, its server, and what is in its way."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Mapping
from typing import Final

import structlog
import uvicorn

from daemon.base.control import Handler
from daemon.config.settings import Settings
from daemon.embedded.connections import ConnectionLimits, limited
from daemon.intake.admit import Rules
from daemon.serving import keys
from daemon.web.app import build
from daemon.web.desk import Desk
from daemon.web.operators import Operators
from policies.errors import ConfigError

STOP_S: Final = 5.0
KEEP_ALIVE_S: Final = 30
AT_ONCE: Final = 64

log = structlog.get_logger(__name__)


class Page:
    """Serves the page beside the daemon's loop; what it cannot do is trouble, never an end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._problem = ""
        self._stopping = False
        self._desk: Desk | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def trouble(self) -> tuple[str, ...]:
        """Why there is no page, in one line; nothing where there is one."""
        return (self._problem,) if self._problem else ()

    def begin(self, commands: Mapping[str, Handler], rules: Rules) -> None:
        """Called in the daemon's loop, which then carries out what the page asks of it."""
        operators = Operators(self._key, time.time)
        loop = asyncio.get_running_loop()
        self._desk = Desk(self._settings, commands, loop, rules, operators)
        self.ensure()

    def use(self, settings: Settings) -> None:
        """Settings were reloaded: the page shows these."""
        self._settings = settings
        if self._desk is not None:
            self._desk.settings = settings

    def ensure(self) -> None:
        """Serve, unless that is done already; what is in the way is told and tried again."""
        if self._desk is None or (self._thread is not None and self._thread.is_alive()):
            return
        web = self._settings.web
        try:
            self._key()
            sock = _listening(web.host, web.port)
        except (ConfigError, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            problem = (
                f"no page on {web.host}:{web.port}: {why}; stop what uses that port or set another "
                "[web] port; it is tried again"
            )
            if problem != self._problem:
                log.warning("no page", line=problem)
            self._problem = problem
            return
        self._problem = ""
        self._thread = threading.Thread(
            target=self._serve, args=(self._desk, sock), name="page", daemon=True
        )
        self._thread.start()
        log.info("page", url=f"http://{_shown(web.host)}:{web.port}/")

    def _serve(self, desk: Desk, sock: socket.socket) -> None:
        """In the page's own thread: the application takes too long to build for the loop."""
        config = uvicorn.Config(
            build(desk),
            log_config=None,
            access_log=False,
            http=limited(ConnectionLimits(AT_ONCE)),
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        if self._stopping:
            sock.close()
        else:
            self._server.run(sockets=[sock])

    async def stop(self) -> None:
        """End it; requests under way are given a second."""
        self._stopping = True
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, STOP_S)

    def _key(self) -> str:
        named = self._settings.web.token_file
        return (
            keys.ensure(self._settings.layout.operator_key) if named is None else keys.read(named)
        )


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once only what it knows to be TCP; else each answer waits 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(AT_ONCE)
    except OSError:
        sock.close()
        raise
    sock.set_inheritable(False)
    return sock


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
