"""Twenty batches through the daemon and its embedded server: the short part of the long run."""

from __future__ import annotations

import pytest

from benchmarks.durability import soak

pytestmark = [pytest.mark.durability, pytest.mark.timeout(300)]


def test_a_short_soak_keeps_the_promises_and_lets_go_of_what_it_opened() -> None:
    figures = soak.run(batches=20, samples=None, sampled=5)
    assert figures["promises_held"]
    first, last = figures["soak_fds_first_last"]
    assert last <= first + 4
    first, last = figures["soak_server_fds_first_last"]
    assert last <= first + 4
