"""[canary]: what answers a share of the requests, for how long, and what withdraws it."""

from __future__ import annotations

from pathlib import Path

from daemon.config.settings import Settings
from policies.canary import Traffic
from tests.config.effects import Effect
from tests.support.world import World


def tried(settings: Settings, root: Path) -> object:
    """Minute by minute: where the plan stands, and the share of the canary, which is slow."""
    world, seen = World(root / "world", {"canary": settings.canary.model_dump()}), []
    world.drop(1)
    for _ in range(12):
        world.tick()
        if world.running is not None:
            world.finish()
    slow = Traffic(requests=40, seconds=8.0, squares=1.7)
    quick = Traffic(requests=400, seconds=40.0, squares=5.0)
    for _ in range(8):
        world.serve()
        canary = world.fleet.canary
        world.fleet.asked = {canary.model: slow, "base": quick} if canary else {}
        seen.append((world.ledger.plans.head(1).state.value, canary and canary.share))
        world.tick(60)
    return seen


GIVEN = {"canary.minutes": 5, "canary.slower": 4.0}
EFFECTS: dict[str, Effect] = {
    "canary.minutes": Effect(tried, 2, GIVEN),
    "canary.share": Effect(tried, 0.3, GIVEN),
    "canary.slower": Effect(tried, 1.2, GIVEN),
}
