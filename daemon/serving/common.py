"""What the replicas of one fleet share."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from adapters import store
from daemon.serving.base_record import BaseRecord
from daemon.serving.identity import EXACT, Tolerance
from daemon.serving.turns import Turns

AT_ONCE: Final = 32


def _utc() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Common:
    """What the replicas of one fleet share: names, limits in seconds, clocks.

    `served` is the directory of composed revisions, under the same path for every replica.
    `restart` is asked when a replica computes NaN, which stays in its prefix cache; `poison` are
    revisions that did, with the reason. What failed otherwise in a process is tried again there
    after `again_s`. `base_record` None leaves the base unverified (tests only). `turns` bounds how
    many replicas are brought to a revision at a time.
    """

    alias: str
    base: str
    served: Path
    drain_s: float = 2.0
    verify_timeout_s: float = 60.0
    again_s: float = 60.0
    tolerance: Tolerance = EXACT
    base_record: BaseRecord | None = None
    now: Callable[[], datetime] = _utc
    monotonic: Callable[[], float] = time.monotonic
    nonce: Callable[[], str] = lambda: secrets.token_hex(8)
    restart: Callable[[str], Awaitable[None]] | None = None
    poison: dict[str, str] = field(default_factory=dict)
    turns: Turns = field(default_factory=lambda: Turns(AT_ONCE))
    _hashing: dict[str, asyncio.Task[tuple[str, ...]]] = field(default_factory=dict)

    async def unfit(self, name: str) -> tuple[str, ...]:
        """Why a revision's files are not fit to be loaded; empty when all is well.

        They are hashed in full. Replicas that ask while they are being hashed share the answer: so
        a hundred of them do not read the same files a hundred times.
        """
        task = self._hashing.get(name)
        if task is None:
            hashed = asyncio.to_thread(store.verify, self.served / name)
            task = self._hashing[name] = asyncio.create_task(hashed)
            task.add_done_callback(lambda _: self._hashing.pop(name, None))
        return await asyncio.shield(task)
