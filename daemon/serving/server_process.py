"""A managed server: started, waited for, started again with growing pauses, ended with us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from daemon.serving import tether
from daemon.serving.server_command import Command
from policies.backoff import pause_s
from policies.errors import ServerUnusable

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0
POLL_S = 0.2
END_S = 20.0


class Phase(StrEnum):
    """What the managed server is doing."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "waiting to start again"
    STOPPED = "stopped"


@dataclass(slots=True)
class Supervised:
    """One child process. `run` lasts until `stop`; `phase` and `reason` say how it stands."""

    command: Command
    healthy: Callable[[], Awaitable[bool]]
    start_timeout_s: float = 300.0
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    phase: Phase = Phase.STOPPED
    reason: str = ""
    starts: int = 0
    _child: asyncio.subprocess.Process | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int | None:
        """The child's process, None while there is none."""
        return None if self._child is None else self._child.pid

    async def run(self) -> None:
        """Keep the server running until `stop`."""
        failures = 0
        while not self._stopping.is_set():
            begun = self.monotonic()
            try:
                await self._once()
            except ServerUnusable as problem:
                self.reason = str(problem)
            if self._stopping.is_set():
                break
            self.phase = Phase.PAUSING
            failures = 1 if self.monotonic() - begun > STEADY_S else failures + 1
            pause = pause_s(failures, FIRST_PAUSE_S, LONGEST_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
        self.phase = Phase.STOPPED

    async def stop(self) -> None:
        """End the child, gently first, and let `run` return."""
        self._stopping.set()
        await self._end()

    async def restart(self) -> None:
        """End the child; `run` starts it again."""
        await self._end()

    async def _once(self) -> None:
        self.phase = Phase.STARTING
        await free_port(self.command.host, self.command.port, END_S, self.sleep)
        self._child = child = await _spawn(self.command)
        self.starts += 1
        try:
            await self._until_healthy(child)
            self.phase, self.reason = Phase.RUNNING, ""
            code = await child.wait()
            if not self._stopping.is_set():
                self.reason = f"the server ended ({_ending(code)}): {last_line(self.command.log)}"
        finally:
            if child.returncode is None:
                await self._end()
            _kill_group(child.pid)
            self._child = None

    async def _until_healthy(self, child: asyncio.subprocess.Process) -> None:
        deadline = self.monotonic() + self.start_timeout_s
        while not await self.healthy():
            if child.returncode is not None:
                raise ServerUnusable(
                    f"the server ended while starting ({_ending(child.returncode)}): "
                    f"{last_line(self.command.log)}"
                )
            if self.monotonic() > deadline:
                raise ServerUnusable(
                    f"the server was not ready within {self.start_timeout_s:g} s "
                    f"([server] start_timeout_s); its log is {self.command.log}"
                )
            await self.sleep(POLL_S)

    async def _end(self) -> None:
        child = self._child
        if child is None or child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), END_S)
        except TimeoutError:
            _kill_group(child.pid)
            await child.wait()


async def free_port(
    host: str,
    port: int,
    patience_s: float,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Return once the port can be had; raises `ServerUnusable` after `patience_s`.

    A server that a killed daemon has left behind needs a moment to end.
    """
    waited = 0.0
    while (problem := _port_problem(host, port)) is not None:
        if waited >= patience_s:
            raise ServerUnusable(
                f"cannot listen on {host}:{port}: {problem}; stop what uses that port "
                "or set [server] urls to another one"
            )
        await sleep(POLL_S)
        waited += POLL_S


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 8192))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return f"no log at {log}"
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:300] if said else f"it said nothing ({log})"


def _port_problem(host: str, port: int) -> str | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error.strerror or str(error)
    return None


async def _spawn(command: Command) -> asyncio.subprocess.Process:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    tethered = [sys.executable, "-I", tether.__file__, str(os.getpid())]
    with command.log.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *(*tethered, "--log", str(command.log), *command.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **command.environment},
            start_new_session=True,
        )


def _ending(code: int) -> str:
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        return f"signal {signal.Signals(number).name}"
    return f"exit {code}"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
