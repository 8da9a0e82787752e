"""The loss that a suite is said to see is one that the gate's own test finds four times of five."""

from __future__ import annotations

import numpy as np
import pytest

from policies.gate.power import detectable_loss
from policies.gate.sequential import Design, follow

DESIGN = Design(margin=0.05, alpha=0.05, beta=0.01)


def power(design: Design, items: int, discordance: float, loss: float, streams: int = 400) -> float:
    """How often streams with this loss fail, of so many."""
    rng = np.random.default_rng(7)
    spread = max(discordance, loss)
    chances = [(spread + loss) / 2, 1 - spread, (spread - loss) / 2]
    failed = 0
    for _ in range(streams):
        outcomes = rng.choice([-1.0, 0.0, 1.0], size=items, p=chances)
        failed += follow(design, outcomes).decision == "fail"
    return failed / streams


@pytest.mark.parametrize(
    ("items", "discordance"), [(100, 0.02), (400, 0.06), (1000, 0.01), (1000, 0.1)]
)
def test_the_detectable_loss_fails_four_times_of_five(items: int, discordance: float) -> None:
    loss = detectable_loss(DESIGN, items, discordance)
    assert loss is not None
    assert 0.77 < power(DESIGN, items, discordance, loss) <= 0.97
    assert power(DESIGN, items, discordance, 0.6 * loss) < 0.8


def test_more_items_see_less_and_a_handful_nothing() -> None:
    losses = [detectable_loss(DESIGN, n, 0.05) for n in (50, 200, 800, 3200)]
    assert all(loss is not None for loss in losses)
    assert losses == sorted(losses, key=lambda loss: -(loss or 0))
    assert detectable_loss(DESIGN, 8, 0.05) is None
