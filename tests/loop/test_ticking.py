"""Work comes again on time, at once when woken, and none of it is lost or doubled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from daemon.loop.ticking import Wake, every

LONG_S = 60.0


def ticked(
    wake: Wake, work: Callable[[], Awaitable[None]], act: Callable[[], Awaitable[None]]
) -> None:
    """Run `act` beside work that would come again only after a minute."""

    async def run() -> None:
        task = asyncio.create_task(every(LONG_S, work, wake=wake))
        await asyncio.wait_for(act(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - counted by the work
        await asyncio.sleep(0)


async def some_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_each_wake_is_one_more_call() -> None:
    wake, calls = Wake(), [0]

    async def work() -> None:
        calls[0] += 1

    async def act() -> None:
        for expected in (1, 2, 3):
            await until(lambda n=expected: calls[0] == n)  # type: ignore[misc]
            await some_turns()
            assert calls[0] == expected
            wake.set()

    ticked(wake, work, act)


def test_what_is_set_during_the_work_has_it_done_once_more() -> None:
    """A command that comes while a promotion is under way is looked at right afterwards."""
    wake, calls = Wake(), [0]
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        calls[0] += 1
        begun.set()
        await go_on.wait()

    async def act() -> None:
        await begun.wait()
        wake.set()
        wake.set()
        await some_turns()
        assert calls[0] == 1
        go_on.set()
        await until(lambda: calls[0] == 2)
        await some_turns()
        assert calls[0] == 2

    ticked(wake, work, act)


def test_one_event_wakes_every_loop() -> None:
    wake, calls = Wake(), {"serve": 0, "tick": 0}

    async def serve() -> None:
        calls["serve"] += 1

    async def tick() -> None:
        calls["tick"] += 1

    async def act() -> None:
        beside = asyncio.create_task(every(LONG_S, tick, wake=wake))
        await until(lambda: calls == {"serve": 1, "tick": 1})
        wake.set()
        await until(lambda: calls == {"serve": 2, "tick": 2})
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)

    ticked(wake, serve, act)


def test_work_that_fails_comes_again() -> None:
    wake, calls = Wake(), [0]

    async def work() -> None:
        calls[0] += 1
        raise ValueError("once")

    async def act() -> None:
        await until(lambda: calls[0] == 1)
        wake.set()
        await until(lambda: calls[0] == 2)

    ticked(wake, work, act)
