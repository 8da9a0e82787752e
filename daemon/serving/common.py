"""What the replicas of one fleet share."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from daemon.serving.base_record import BaseRecord
from daemon.serving.identity import EXACT, Tolerance


def _utc() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Common:
    """What the replicas of one fleet share: names, limits in seconds, clocks.

    `served` is the directory of composed revisions, under the same path for every replica.
    `restart` is asked when a replica computes NaN, which stays in its prefix cache; `poison` are
    revisions that did, with the reason. What failed otherwise in a process is tried again there
    after `again_s`. `base_record` None leaves the base unverified (tests only).
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
