"""Work that takes long goes on beside the ticks, which wait for it a moment only."""

from __future__ import annotations

import asyncio
import time

import pytest

from daemon.loop.beside import AT_ONCE_S, Beside


async def quickly() -> str:
    await asyncio.sleep(0)
    return "done"


def test_what_ends_at_once_is_known_at_once() -> None:
    async def go() -> None:
        beside: Beside[str] = Beside()
        assert await beside.begin(quickly()) == "done"
        assert not beside.under_way
        assert await beside.outcome() is None

    asyncio.run(go())


def test_what_takes_longer_is_known_later_and_waited_for_a_moment_only() -> None:
    async def go() -> None:
        beside: Beside[str] = Beside()
        end = asyncio.Event()

        async def slowly() -> str:
            await end.wait()
            return await quickly()

        began = time.monotonic()
        assert await beside.begin(slowly()) is None
        assert await beside.outcome() is None
        assert time.monotonic() - began < 2 * AT_ONCE_S + 1
        assert beside.under_way
        end.set()
        assert await beside.outcome() == "done"
        assert not beside.under_way

    asyncio.run(go())


def test_an_error_is_raised_once_and_ends_it() -> None:
    async def go() -> None:
        beside: Beside[str] = Beside()
        end = asyncio.Event()

        async def failing() -> str:
            await end.wait()
            raise OSError("no")

        assert await beside.begin(failing()) is None
        end.set()
        with pytest.raises(OSError, match="no"):
            await beside.outcome()
        assert not beside.under_way
        assert await beside.begin(quickly()) == "done"

    asyncio.run(go())


def test_what_is_stopped_goes_no_further() -> None:
    async def go() -> None:
        beside: Beside[str] = Beside()
        reached: list[bool] = []

        async def for_ever() -> str:
            await asyncio.Event().wait()
            reached.append(True)
            return "done"

        assert await beside.begin(for_ever()) is None
        await beside.stop()
        assert await beside.outcome() is None
        assert not beside.under_way
        assert not reached

    asyncio.run(go())
