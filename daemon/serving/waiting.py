"""Waiting for several replicas without one of them holding up the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

POLL_S: Final = 0.05
LATE_S: Final = 0.5


class Patience(NamedTuple):
    """Seconds until one has succeeded, and from then on for the rest; None: until all end."""

    first_s: float | None
    rest_s: float | None


async def succeeded(
    tasks: Mapping[int, asyncio.Task[bool]],
    patience: Patience,
    *,
    late: Collection[int] = (),
    goes_on: Callable[[], bool] = lambda: True,
) -> frozenset[int]:
    """Which have ended with True when all have ended or `patience` is over; the others go on.

    Who is `late` already is waited for `LATE_S` at most, and nobody once `goes_on` says no.
    """
    loop = asyncio.get_running_loop()
    begun, first = loop.time(), None
    while left := {number for number, task in tasks.items() if not task.done()}:
        now = loop.time()
        if first is None and _done(tasks):
            first = now
        limit = patience.first_s if first is None else patience.rest_s
        over = limit is not None and now - (begun if first is None else first) >= limit
        if over or not goes_on() or (left <= {*late} and now - begun >= LATE_S):
            break
        await asyncio.wait(
            [tasks[number] for number in left],
            timeout=POLL_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
    return _done(tasks)


def _done(tasks: Mapping[int, asyncio.Task[bool]]) -> frozenset[int]:
    return frozenset(
        number
        for number, task in tasks.items()
        if task.done() and not task.cancelled() and task.result()
    )
