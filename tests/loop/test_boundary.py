"""What goes wrong in a step: shown as one line, logged once, and gone when it goes well."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from daemon.loop.boundary import Boundary


def failing(error: Exception) -> Callable[[], Awaitable[None]]:
    async def step() -> None:
        raise error

    return step


async def fine() -> None:
    pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_fails_for_an_hour_is_logged_once_in_one_line(number: int) -> None:
    boundary = Boundary()
    error = OSError(number, os.strerror(number), "/state/work/1-train/request.json")
    with capture_logs() as logs:
        for _ in range(3600):
            asyncio.run(boundary.run("work", failing(error)))
    assert len(logs) == 1
    (line,) = boundary.trouble
    assert line == (
        f"work: /state/work/1-train/request.json: {os.strerror(number)}; it is tried again"
    )
    asyncio.run(boundary.run("work", fine))
    assert boundary.trouble == ()


def test_a_bug_is_told_with_its_traceback_once() -> None:
    boundary = Boundary()
    with capture_logs() as logs:
        for _ in range(3):
            asyncio.run(boundary.run("work", failing(KeyError("a bug"))))
    assert [log["event"] for log in logs] == ["unexpected", "trouble"]
    assert boundary.trouble == ("work: unexpected KeyError: 'a bug'; see the log",)
