"""The server side of the daemon: clients of every replica, the fleet, the managed child."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from daemon.config.settings import Settings
from daemon.serving.replicas import connect, fleet
from daemon.serving.server_command import command, install_middleware
from daemon.serving.server_process import Phase, Supervised

log = structlog.get_logger(__name__)


class Servers:
    """Everything that answers requests; `fleet` brings it to the target."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients = connect(settings)
        self.fleet = fleet(settings, self._clients, restart=self._restart)
        self._child: Supervised | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, model_dir: Path) -> None:
        """Have the managed server run over the base in `model_dir`; running already is success.

        Raises `ServerUnusable` where it cannot be started.
        """
        if self.fleet.common.base_record is not None:
            self.fleet.common.base_record.model_dir = model_dir
        if self._child is not None:
            return
        if self._settings.server.kind == "vllm":
            install_middleware(self._settings.state_dir)
        if self._settings.server.mode == "attach":
            return
        self._child = Supervised(
            command(self._settings, model_dir, os.environ),
            healthy=self._clients[0].healthy,
            start_timeout_s=self._settings.server.start_timeout_s,
        )
        self._task = asyncio.create_task(self._child.run(), name="server")
        self._task.add_done_callback(_log_end)

    async def stop(self) -> None:
        """End the managed server and close the connections."""
        if self._child is not None and self._task is not None:
            await self._child.stop()
            await asyncio.gather(self._task, return_exceptions=True)
        for client in self._clients:
            await client.aclose()

    @property
    def trouble(self) -> tuple[str, ...]:
        """Why the managed server does not run, if it does not."""
        child = self._child
        if child is None or child.phase is Phase.RUNNING:
            return ()
        return (child.reason or f"the server is {child.phase.value}",)

    @property
    def problem(self) -> str:
        """Why the managed server could not start or ended; empty while nothing went wrong."""
        return "" if self._child is None else self._child.reason

    async def restart(self) -> bool:
        """End the managed server, to be started again; False where that is not ours to do."""
        if self._child is None:
            return False
        log.warning("restarting the server")
        await self._child.restart()
        return True

    async def _restart(self, url: str) -> None:
        """A replica that computes nonsense is started again where that is ours to do."""
        log.warning("a server computes nonsense", url=url)
        await self.restart()


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the server's supervisor ended", error=str(error))
