"""The control socket: one JSON line each way, one clear line for every mistake."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from daemon.base.control import ControlServer, ask
from policies.errors import DaemonUnreachable, NotFound, RequestRefused

Answer = TypeVar("Answer")


async def double(number: int) -> dict[str, int]:
    return {"doubled": 2 * number}


async def refuse() -> None:
    raise NotFound("no plan 7; 'palorad history' lists them")


async def break_down() -> None:
    raise KeyError("inside")


COMMANDS = {"double": double, "refuse": refuse, "break": break_down}


def serving(path: Path, work: Callable[[], Answer]) -> Answer:
    """What `work` gives in a thread while the server answers."""

    async def run() -> Answer:
        server = ControlServer(path, COMMANDS)
        await server.start()
        try:
            return await asyncio.to_thread(work)
        finally:
            await server.stop()

    return asyncio.run(run())


def raw(path: Path, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.fspath(path))
        sock.sendall(line)
        with sock.makefile("rb") as stream:
            reply: dict[str, Any] = json.loads(stream.readline())
            return reply


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_a_command_is_answered(path: Path) -> None:
    assert serving(path, lambda: ask(path, "double", number=4)) == {"doubled": 8}
    assert not path.exists()


def test_only_its_owner_may_speak_to_it(path: Path) -> None:
    mode = serving(path, lambda: stat.S_IMODE(path.stat().st_mode))
    assert mode == 0o600


def test_a_refusal_comes_back_as_its_one_line(path: Path) -> None:
    with pytest.raises(RequestRefused, match=r"^no plan 7; 'palorad history' lists them$"):
        serving(path, lambda: ask(path, "refuse"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"not json\n", "not a request"),
        (b'["double"]\n', "not a request"),
        (b'{"command": "double", "more": 1}\n', "not a request"),
        (b'{"command": "dance"}\n', "unknown command dance: break, double, refuse"),
        (b'{"command": "double"}\n', "double:"),
        (b'{"command": "double", "args": {"count": 1}}\n', "double:"),
        (b'{"command": "break"}\n', "break: 'inside'"),
    ],
)
def test_a_mistake_gets_one_line_and_the_next_is_answered(
    path: Path, line: bytes, told: str
) -> None:
    def work() -> tuple[dict[str, Any], Any]:
        return raw(path, line), ask(path, "double", number=1)

    reply, after = serving(path, work)
    assert reply["ok"] is False
    assert told in reply["error"]
    assert "\n" not in reply["error"]
    assert after == {"doubled": 2}


def test_a_client_that_says_nothing_disturbs_nobody(path: Path) -> None:
    def work() -> Any:
        with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as gone:
            silent.connect(os.fspath(path))
            gone.connect(os.fspath(path))
            gone.sendall(b'{"command"')
            gone.close()
            return ask(path, "double", number=3)

    assert serving(path, work) == {"doubled": 6}


def test_where_no_daemon_runs_it_says_how_to_start_one(path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="start it with `palorad run`"):
        ask(path, "status")
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(os.fspath(path))
    left_over.close()
    with pytest.raises(DaemonUnreachable, match="start it with `palorad run`"):
        ask(path, "status")


def test_a_left_over_socket_is_replaced(path: Path) -> None:
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(os.fspath(path))
    left_over.close()
    assert serving(path, lambda: ask(path, "double", number=1)) == {"doubled": 2}


def test_a_path_too_long_for_a_socket_says_so(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120) / "control.sock"

    async def start() -> None:
        await ControlServer(path, {}).start()

    with pytest.raises(RequestRefused, match="set a shorter state_dir"):
        _run(start)


def _run(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await work()

    asyncio.run(run())
