"""Training beside a server on one GPU: asked of the driver before a child starts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from daemon.config.settings import Settings
from daemon.serving import gpu
from policies.planning import Step

AGAIN_S: Final = 30.0
ASKED_S: Final = 15.0

log = structlog.get_logger(__name__)


def subject(plan: int | None) -> str:
    """Who waits, as status names it."""
    return f"plan {plan}" if plan else "the probe"


class Refusals:
    """Why there is no room, and when to ask again; told for as long as somebody asks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that only ever grow."""
        self._clock = clock
        self._not_before = self._asked_at = clock()
        self._line = ""

    @property
    def resting(self) -> bool:
        """Whether it was refused just now."""
        return self._clock() < self._not_before

    @property
    def line(self) -> str:
        """Why whoever asked last waits; empty where nobody asks any more."""
        return self._line if self._clock() - self._asked_at < ASKED_S else ""

    def asked(self) -> None:
        """Somebody needs room."""
        self._asked_at = self._clock()

    def refuse(self, line: str, again_s: float = AGAIN_S) -> None:
        """There is none, and none is looked for in the next `again_s` seconds."""
        if line != self._line:
            log.info("no room on the GPU", line=line)
        self._line, self._not_before = line, self._clock() + again_s

    def clear(self) -> None:
        """There is room."""
        self._line = ""


class Coresident:
    """Whether what a child needs is free beside the server; nothing that waits counts as failed."""

    def __init__(
        self,
        settings: Settings,
        refusals: Refusals,
        read_memory: Callable[[], gpu.Memory] = lambda: gpu.read_memory(os.environ),
    ) -> None:
        self._settings = settings
        self._refusals = refusals
        self._read_memory = read_memory

    async def fits(self, plan: int, step: Step) -> bool:
        """Whether a child of this plan may start now."""
        if self._refusals.resting:
            return False
        try:
            needed = gpu.needed_bytes(self._settings, probing=step is Step.PROBE)
            await asyncio.to_thread(partial(gpu.require_room, needed, self._read_memory))
        except gpu.NoRoom as problem:
            self._refusals.refuse(f"{subject(plan)} waits for room on the GPU: {problem}")
            return False
        self._refusals.clear()
        return True
