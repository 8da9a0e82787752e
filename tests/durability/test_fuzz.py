"""Whatever happens in whatever order, the promises hold: a bounded part of the long run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.support.life.machine import Life

pytestmark = pytest.mark.durability

TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
