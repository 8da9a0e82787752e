"""Whatever happens in whatever order."""

from __future__ import annotations

from tests.support.life.drops import Drops
from tests.support.life.mishaps import Mishaps
from tests.support.life.people import People
from tests.support.life.stage import STEPS

__all__ = ["STEPS", "Life"]


class Life(Drops, Mishaps, People):
    """Drops, paused writers, ticks, deaths, power cuts, clocks, people, replicas, tampering."""
