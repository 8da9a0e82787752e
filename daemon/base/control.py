"""The control socket: the one way to change anything while the daemon runs.

One JSON object a line: `{"command": …, "args": {…}}` is answered by `{"ok": true, "result": …}` or
`{"ok": false, "kind": …, "error": "one clear line"}`. The socket's file rights are its protection.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from policies.errors import DaemonUnreachable, PaloradError, RequestRefused

LINE_BYTES: Final = 16 * 1024 * 1024
IDLE_TIMEOUT_S: Final = 30.0
ASK_TIMEOUT_S: Final = 30.0
SOCKET_PATH_BYTES: Final = 107

Handler = Callable[..., Awaitable[Any]]
log = structlog.get_logger(__name__)


class ControlRequest(BaseModel):
    """One line to the daemon."""

    model_config = ConfigDict(extra="forbid")

    command: str
    args: dict[str, Any] = {}


class Reply(BaseModel):
    """One line from the daemon."""

    model_config = ConfigDict(extra="forbid")

    ok: bool
    result: Any = None
    error: str = ""
    kind: str = ""


class ControlServer:
    """Answers on a Unix socket by the named commands."""

    def __init__(self, path: Path, commands: Mapping[str, Handler]) -> None:
        self._path = path
        self._commands = commands
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; a socket left by a dead daemon is replaced (the instance lock is ours)."""
        if len(os.fsencode(self._path)) > SOCKET_PATH_BYTES:
            raise RequestRefused(
                f"{self._path}: too long for a socket's name ({SOCKET_PATH_BYTES} bytes at most); "
                "set a shorter state_dir"
            )
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, path=self._path, limit=LINE_BYTES
            )
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Stop listening and take the socket away."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                line = await reader.readline()
            reply = await self._answer(line)
            writer.write(reply.model_dump_json().encode() + b"\n")
            await writer.drain()
        except (TimeoutError, ConnectionError, ValueError) as error:
            log.info("control connection dropped", reason=str(error) or type(error).__name__)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Reply:
        try:
            request = ControlRequest.model_validate_json(line)
        except ValidationError:
            return Reply(ok=False, kind="BadRequest", error="not a request: expected one JSON line")
        command = self._commands.get(request.command)
        if command is None:
            known = ", ".join(sorted(self._commands))
            return Reply(
                ok=False, kind="BadRequest", error=f"unknown command {request.command}: {known}"
            )
        try:
            return Reply(ok=True, result=await command(**request.args))
        except PaloradError as error:
            return Reply(ok=False, kind=type(error).__name__, error=str(error))
        except Exception as error:
            log.exception("control command failed", command=request.command)
            return Reply(ok=False, kind=type(error).__name__, error=f"{request.command}: {error}")


def ask(path: Path, command: str, /, **args: object) -> Any:  # noqa: ANN401 - whatever JSON holds
    """One command's result; raises `RequestRefused` or `DaemonUnreachable`."""
    line = json.dumps({"command": command, "args": args}, default=str).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ASK_TIMEOUT_S)
            sock.connect(os.fspath(path))
            sock.sendall(line)
            with sock.makefile("rb") as stream:
                answer = stream.readline()
    except (FileNotFoundError, ConnectionRefusedError):
        raise DaemonUnreachable(
            f"no daemon answers at {path}; start it with `palorad run`"
        ) from None
    except PermissionError:
        raise DaemonUnreachable(
            f"{path}: no permission; run as the user that the daemon runs as"
        ) from None
    except (TimeoutError, OSError) as error:
        raise DaemonUnreachable(f"{path}: the daemon did not answer: {error}") from None
    if not answer:
        raise DaemonUnreachable(f"{path}: the daemon closed the connection without an answer")
    reply = Reply.model_validate_json(answer)
    if not reply.ok:
        raise RequestRefused(reply.error)
    return reply.result
